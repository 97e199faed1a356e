"""Pushes to a Hub: all or nothing for the reader, resumed where they broke off, refused early, no token left over."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from job.errors import GateError, InputError, PolicyError, TransientError
from job.host import child
from job.host.child import run_child
from job.hub.push import PushAnswer, PushRequest, Sent, environment
from job.hub.repository import Content
from tests.forking import server
from tests.hub_server import HubFault
from tests.hub_writes import Large
from tests.servers import Hub, closed_port

RUN = "0123456789abcdef"
BRANCH = f"tunejob-{RUN}"
NAME = "org/tuned"
CARD = b"---\nlicense: apache-2.0\n---\n# tuned\n"
WEIGHTS = bytes(range(256)) * 400  # 102,400 bytes: large for the test Hub
TREE = {
    "README.md": CARD,
    "adapter/adapter_config.json": b'{"r": 8}',
    "adapter/adapter_model.safetensors": WEIGHTS,
    "gguf/tuned-Q8_0.gguf": b"GGUF" + WEIGHTS,
    "report/empty.txt": b"",
}
COMMIT_ON_MAIN = "POST /api/models/org/tuned/commit/main"
SENT = r"PUT /storage/org/tuned/.*"


class Pusher:
    """Runs operations of `job.hub.push` in a child that alone has the token: forked, or, as in the job, `started`."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder, self.token = hub, folder, hub.token
        self.extra: dict[str, str] = {}
        self.started = False

    def ask(self, operation: Any, repository: str = NAME, **request: Any) -> PushAnswer:
        asked, variables = PushRequest(operation, repository, **request), environment(self.token) | self.extra
        if self.started:
            return run_child("job.hub.push", asked, self.folder / "child", "push", variables, answer=PushAnswer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(child, "_SERVERS", [server(())])
            patch.setattr(os, "environ", variables)
            patch.setattr(child, "without_secrets", dict)  # in the job what is forked gets no token: a push is started
            return run_child("job.hub.push", asked, self.folder / "child", "push", answer=PushAnswer)

    def write(self, tree: dict[str, bytes]) -> tuple[Sent, ...]:
        """Local files of a tree with their keys, under names that say nothing."""
        pairs = []
        for key, content in tree.items():
            path = self.folder / "files" / hashlib.sha256(key.encode()).hexdigest()[:8]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            pairs.append(Sent(path, key))
        return tuple(pairs)

    def check(self, private: bool = False) -> None:
        self.ask("check_access", private=private)

    def push(self, tree: dict[str, bytes], run: str = RUN) -> dict[str, Any]:
        staged = self.ask("stage", files=self.write(tree), run_id=run).contents
        report = self.ask("publish", run_id=run, message=f"Run {run}", contents=staged).report
        assert report is not None
        return asdict(report)


@pytest.fixture
def pusher(hub: Hub, tmp_path: Path) -> Pusher:
    return Pusher(hub, tmp_path)


@pytest.fixture
def started(ready: Pusher) -> Pusher:
    ready.started = True
    return ready


@pytest.fixture
def ready(pusher: Pusher) -> Iterator[Pusher]:
    """With its repository there: one commit, of somebody else's files."""
    pusher.hub.repo(NAME).commit({".gitattributes": b"*.gguf filter=lfs\n", "notes/mine.md": b"keep"})
    yield pusher
    for _, path, authorization in pusher.hub.seen:
        assert authorization in (
            None if path.startswith(("/storage/", "/cdn/")) else f"Bearer {pusher.hub.token}",
            f"Bearer {pusher.token}",
        )


def ours(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    """The files of the repository without those that were there before, and without our record."""
    return {
        key: bytes(data)
        for key, data in hub.repos[NAME].files(revision).items()
        if key not in (".gitattributes", "notes/mine.md", "tunejob.sha256")
    }


# ------------------------------------------------------------------------------------------------ a push


def test_all_files_come_to_main_in_one_commit(started: Pusher) -> None:
    ready = started
    repo = ready.hub.repos[NAME]
    report = ready.push(TREE)
    assert ours(ready.hub) == TREE
    assert repo.files()["notes/mine.md"] == b"keep"
    assert [branch for branch, _ in repo.pushes] == [BRANCH, "main"]
    assert repo.pushes[-1] == ("main", f"Run {RUN}")
    assert report == {
        "commit": repo.refs["main"],
        "url": f"{ready.hub.endpoint}/{NAME}/tree/{repo.refs['main']}",
        "files": 5,
        "bytes": sum(map(len, TREE.values())),
        "removed": (),
    }
    assert list(repo.refs) == ["main"]
    assert ready.hub.asked(SENT) == 2


def test_the_record_is_one_that_sha256sum_checks(ready: Pusher, tmp_path: Path) -> None:
    ready.push(TREE)
    for key, data in ready.hub.repos[NAME].files().items():
        (tmp_path / "got" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / key).write_bytes(data)
    command = ["sha256sum", "--check", "--strict", "tunejob.sha256"]
    done = subprocess.run(command, cwd=tmp_path / "got", capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{key}: OK" for key in sorted(TREE)]


def test_until_the_commit_main_stays_as_it_was(ready: Pusher) -> None:
    """The Hub fails for good at each step of a push, one by one; readers see the old state, the next push the rest."""
    repo = ready.hub.repos[NAME]
    before = repo.refs["main"]
    steps = [f"POST .*/branch/{BRANCH}", f"GET .*/tree/{BRANCH}.*", "POST .*/preupload/.*", "POST .*/batch"]
    steps += [f"POST .*/commit/{BRANCH}", "GET .*/refs", COMMIT_ON_MAIN]
    for step in steps:
        ready.hub.faults = [HubFault(step, 403, times=1000, message="no")]
        with pytest.raises((InputError, TransientError)):
            ready.push({"README.md": CARD, f"gguf/{steps.index(step)}.gguf": WEIGHTS + step.encode()})
        assert repo.refs["main"] == before, step
    ready.hub.faults = []
    ready.push(TREE)
    assert ours(ready.hub) == TREE
    assert [branch for branch, _ in repo.pushes].count("main") == 1


def test_a_push_that_was_cut_short_sends_only_what_is_missing(ready: Pusher) -> None:
    ready.hub.faults = [HubFault(f"POST .*/commit/{BRANCH}", 403, message="no")]
    with pytest.raises(InputError):
        ready.push(TREE)
    assert ready.hub.asked(SENT) == 2
    ready.push(TREE | {"gguf/tuned-Q4_0.gguf": WEIGHTS[::-1]})
    assert ready.hub.asked(SENT) == 3


def test_what_is_on_the_branch_is_not_even_announced_again(ready: Pusher) -> None:
    ready.hub.faults = [HubFault(COMMIT_ON_MAIN, 403, message="no")]
    with pytest.raises(InputError):
        ready.push(TREE)
    ready.hub.seen.clear()
    ready.push(TREE)
    assert ready.hub.asked("POST .*/batch") == ready.hub.asked(SENT) == ready.hub.asked(f"POST .*/commit/{BRANCH}") == 0
    assert ready.hub.asked(COMMIT_ON_MAIN) == 1


def test_a_second_push_of_the_same_changes_nothing(ready: Pusher) -> None:
    first, second = ready.push(TREE), ready.push(TREE)
    assert first["commit"] == second["commit"]
    assert ready.hub.asked(SENT) == 2
    assert list(ready.hub.repos[NAME].refs) == ["main"]


def test_files_staged_one_by_one_need_not_be_kept(ready: Pusher) -> None:
    contents: tuple[Content, ...] = ()
    for file in ready.write(TREE):
        contents += ready.ask("stage", files=(file,), run_id=RUN).contents
        file.path.unlink()
        assert ours(ready.hub) == {}
    shown = ready.ask("publish", contents=contents, run_id=RUN, message="All")
    assert shown.report is not None
    assert (shown.report.files, ours(ready.hub)) == (5, TREE)
    assert (
        ready.ask("publish", contents=contents, run_id=RUN, message="All") == shown
    )  # a run that did not live to hear it
    assert [branch for branch, _ in ready.hub.repos[NAME].pushes].count("main") == 1


def test_large_files_go_in_parts(ready: Pusher) -> None:
    content = os.urandom(5 * ready.hub.part_bytes // 2)
    ready.push({"gguf/a.gguf": content})
    assert ours(ready.hub) == {"gguf/a.gguf": content}
    assert ready.hub.asked(SENT) == 3


def test_more_files_than_one_page_lists(ready: Pusher) -> None:
    tree = {f"report/{i:03}.json": b"%d" % i for i in range(3 * ready.hub.page)}
    ready.push(tree)
    assert ours(ready.hub) == tree


# ------------------------------------------------------------------------------------------------ what was there before


def test_an_earlier_push_leaves_nothing_and_nobody_loses_anything(ready: Pusher) -> None:
    repo = ready.hub.repos[NAME]
    ready.push(
        TREE | {"gguf/tuned-Q2_K.gguf": WEIGHTS[1:], "gguf/tuned-Q3_K.gguf": WEIGHTS[2:], "report/old.json": b"{}"}
    )
    theirs = {"gguf/theirs.gguf": b"made by hand", "gguf/tuned-Q3_K.gguf": Large(b"another" * 1000)}
    repo.commit(repo.files() | theirs)
    report = ready.push(TREE, run="fedcba9876543210")
    assert report["removed"] == ("gguf/tuned-Q2_K.gguf", "report/old.json")
    assert ours(ready.hub) == TREE | theirs
    assert [branch for branch, _ in repo.pushes].count("main") == 2


@pytest.mark.parametrize(
    "record", [b"", b"\xff\xfe", b"nonsense\n", b"0" * 64 + b"  ../../etc/passwd\n" + b"1" * 64 + b"  no/such.gguf\n"]
)
def test_a_record_that_says_nothing_useful_removes_nothing(ready: Pusher, record: bytes) -> None:
    repo = ready.hub.repos[NAME]
    repo.commit(repo.files() | {"tunejob.sha256": record})
    assert ready.push(TREE)["removed"] == ()
    assert repo.files()["notes/mine.md"] == b"keep"


def test_a_file_that_somebody_changed_is_ours_again(ready: Pusher) -> None:
    repo = ready.hub.repos[NAME]
    ready.push(TREE)
    repo.commit(repo.files() | {"README.md": b"edited", "gguf/tuned-Q8_0.gguf": b"edited"})
    ready.push(TREE)
    assert ours(ready.hub) == TREE
    assert ready.hub.asked(SENT) == 2


def test_a_commit_of_somebody_else_in_between_is_kept(ready: Pusher) -> None:
    """Our commit names its parent; when main has moved, it is made again on top."""
    repo = ready.hub.repos[NAME]
    ready.hub.before = {COMMIT_ON_MAIN: lambda: repo.commit(repo.files() | {"notes/new.md": b"new"})}
    ready.push(TREE)
    assert ours(ready.hub) == TREE | {"notes/new.md": b"new"}
    assert ready.hub.asked(COMMIT_ON_MAIN) == 2


def test_a_gitignore_hides_nothing(ready: Pusher) -> None:
    repo = ready.hub.repos[NAME]
    repo.commit(repo.files() | {".gitignore": b"*.gguf\nreport/*\n*.sha256\n"})
    ready.push(TREE)
    assert {key: data for key, data in ours(ready.hub).items() if key != ".gitignore"} == TREE
    assert "tunejob.sha256" in repo.files()


# ------------------------------------------------------------------------------------------------ faults


def test_failures_in_passing_are_survived(ready: Pusher) -> None:
    ready.hub.failures = 1
    ready.hub.cut_uploads = 1
    ready.hub.faults = [
        HubFault(f"POST .*/{step}", 503) for step in ("batch", "preupload/.*", f"commit/{BRANCH}", "commit/main")
    ]
    ready.hub.faults += [HubFault("DELETE .*", 503), HubFault(SENT, 500)]
    ready.push(TREE)
    assert ours(ready.hub) == TREE
    assert not any(fault.times for fault in ready.hub.faults)
    assert ready.hub.cut_uploads == ready.hub.failures == 0


def test_a_commit_whose_answer_was_lost_is_not_made_twice(ready: Pusher) -> None:
    ready.hub.faults = [HubFault(COMMIT_ON_MAIN, 504, done=True), HubFault("DELETE .*", 502, done=True)]
    report = ready.push(TREE)
    assert [branch for branch, _ in ready.hub.repos[NAME].pushes] == [BRANCH, "main"]
    assert report["commit"] == ready.hub.repos[NAME].refs["main"]


def test_a_file_that_did_not_arrive_whole_is_sent_again(ready: Pusher) -> None:
    ready.hub.short_uploads = 1
    ready.push(TREE)
    assert ours(ready.hub) == TREE
    assert ready.hub.asked(SENT) == 3


def test_a_file_that_never_arrives_whole_is_named_and_not_shown(ready: Pusher) -> None:
    before = ready.hub.repos[NAME].refs["main"]
    ready.hub.short_uploads = 1000
    with pytest.raises(TransientError) as failure:
        ready.push(TREE)
    large = sorted(key for key, data in TREE.items() if len(data) > ready.hub.large_bytes)
    assert sorted(fault.where for fault in failure.value.faults) == large
    assert failure.value.faults[0].found.startswith("51200 bytes, sha256 ")
    assert failure.value.faults[0].expected == f"102400 bytes, sha256 {hashlib.sha256(WEIGHTS).hexdigest()}"
    assert ready.hub.repos[NAME].refs["main"] == before


def test_main_is_read_back_too(ready: Pusher) -> None:
    """The storage loses half of a file between the branch and main."""
    storage = ready.hub.repos[NAME].storage
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    ready.hub.before = {COMMIT_ON_MAIN: lambda: storage.update({oid: WEIGHTS[: len(WEIGHTS) // 2]})}
    with pytest.raises(TransientError) as failure:
        ready.push(TREE)
    assert [fault.where for fault in failure.value.faults] == ["adapter/adapter_model.safetensors"]


def test_what_was_not_staged_is_not_published(ready: Pusher) -> None:
    first, second, third, *others = ready.ask("stage", files=ready.write(TREE), run_id=RUN).contents
    contents = (first, second, replace(third, sha256="0" * 64), *others)
    with pytest.raises(TransientError) as failure:
        ready.ask("publish", contents=contents, run_id=RUN, message="All")
    assert [fault.where for fault in failure.value.faults] == [third.key]
    del ready.hub.repos[NAME].refs[BRANCH]
    with pytest.raises(TransientError, match=f"the branch {BRANCH} is gone"):
        ready.ask("publish", contents=contents, run_id=RUN, message="All")
    assert ours(ready.hub) == {}


@pytest.mark.parametrize("kind", ["closed", "not a hub"])
def test_a_hub_that_is_away_is_transient(ready: Pusher, kind: str) -> None:
    if kind == "closed":
        ready.extra = {"HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}"}
    ready.hub.is_hub = kind != "not a hub"
    with pytest.raises(TransientError, match=NAME):
        ready.push({"README.md": CARD})


def test_a_card_that_the_hub_cannot_read_is_a_fault_of_the_card(ready: Pusher) -> None:
    with pytest.raises(GateError) as failure:
        ready.push(TREE | {"README.md": b"---\nlicense: [\n---\n"})
    assert failure.value.faults[0].where == "README.md"
    assert "while parsing" in failure.value.faults[0].message
    assert ours(ready.hub) == {}


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "a//b", "a\nb"])
def test_unsafe_keys_are_refused(ready: Pusher, key: str) -> None:
    with pytest.raises(PolicyError):
        ready.push({key: b"x"})
    assert ready.hub.seen == []


def test_a_repository_that_has_vanished_is_named(pusher: Pusher) -> None:
    with pytest.raises(InputError) as failure:
        pusher.push(TREE)
    assert failure.value.faults[0].where == "/output/hub/repository"


# ------------------------------------------------------------------------------------------------ access


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_is_made_as_it_was_asked_for(pusher: Pusher, private: bool) -> None:
    pusher.check(private)
    repo = pusher.hub.repos[NAME]
    assert repo.private == private
    pusher.check(private)
    assert (list(repo.refs), len(repo.commits)) == (["main"], 1)
    pusher.push(TREE)
    assert {key: bytes(data) for key, data in repo.files().items() if key in TREE} == TREE


def test_nothing_private_goes_to_a_public_repository(ready: Pusher) -> None:
    with pytest.raises(InputError) as failure:
        ready.check(private=True)
    fault = failure.value.faults[0]
    assert (fault.where, fault.found, fault.expected) == ("/output/hub/private", "a public repository", "a private one")


def test_what_is_private_stays_so(pusher: Pusher) -> None:
    pusher.hub.repo(NAME, private=True).commit({"a": b""})
    pusher.check(private=False)
    assert pusher.hub.repos[NAME].private


@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
@pytest.mark.parametrize("token", ["", "hf_wrong", Hub.read_token])
def test_a_token_that_may_not_write_is_refused_early(pusher: Pusher, token: str, there: bool) -> None:
    if there:
        pusher.hub.repo(NAME).commit({"a": b""})
    pusher.token = token
    with pytest.raises(InputError) as failure:
        pusher.check()
    fault = failure.value.faults[0]
    assert (fault.where, fault.hint) == (
        "/output/hub/repository",
        "Set HF_TOKEN to a token that may write to this repository",
    )
    assert not token or token not in str(failure.value)
    assert len(pusher.hub.repos) == there


@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
def test_a_strangers_namespace_is_refused_early(pusher: Pusher, there: bool) -> None:
    if there:
        pusher.hub.repo("stranger/model").commit({"a": b""})
    pusher.started = True  # the client reads HF_ENDPOINT at import, to make sense of the answer
    with pytest.raises(InputError, match="don't have the rights") as failure:
        pusher.ask("check_access", repository="stranger/model", private=False)
    assert failure.value.faults[0].where == "/output/hub/repository"


@pytest.mark.parametrize("name", ["a b/c", "org/-x", "org/a..b", "org/tuned.git"])
def test_a_name_that_no_hub_takes(pusher: Pusher, name: str) -> None:
    with pytest.raises(InputError) as failure:
        pusher.ask("check_access", repository=name, private=False)
    assert failure.value.faults[0].where == "/output/hub/repository"
    assert pusher.hub.seen == []


# ------------------------------------------------------------------------------------------------------ what is left


@pytest.mark.parametrize("fails", [False, True])
def test_the_token_is_left_nowhere(
    started: Pusher, clean_environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    """With everything talkative, in a home of its own, also as JSON of the child's request and answer."""
    ready = started
    clean_environment.setenv("HF_HUB_OFFLINE", "1")  # as the job is by then
    for name, value in {
        "HF_DEBUG": "1",
        "HF_HUB_VERBOSITY": "debug",
        "PYTHONWARNINGS": "always",
        "TMPDIR": str(ready.folder),
    }.items():
        clean_environment.setenv(name, value)
    if fails:
        ready.hub.faults = [HubFault(SENT, 500), HubFault(SENT, 403, times=1000)]
    with pytest.raises(TransientError, match="/storage/") if fails else nullcontext() as failure:
        ready.push(TREE)  # fails as it does when signed addresses have expired
    assert ready.hub.token not in str(failure and failure.value)
    assert "X-Amz-Signature=signed" not in str(failure and failure.value)
    files = [p for p in [*ready.folder.rglob("*"), *Path(os.environ["HOME"]).rglob("*")] if p.is_file()]
    assert len(files) >= 2 + len(TREE)
    assert not [
        p for p in files if ready.hub.token.encode() in p.read_bytes() or b"X-Amz-Signature=signed" in p.read_bytes()
    ]
    printed = "".join(capfd.readouterr())
    assert ready.hub.token not in printed
    assert "X-Amz-Signature=signed" not in printed
    assert "HF_TOKEN" not in os.environ


def test_a_home_that_cannot_be_written_to(started: Pusher) -> None:
    ready = started
    ready.extra = {"HOME": "/proc/none", "HF_HOME": "/proc/none/hf"}
    ready.push(TREE)
    ready.push(TREE | {"README.md": CARD + b"more"})  # reads the record, too
    assert ours(ready.hub)["README.md"] == CARD + b"more"
