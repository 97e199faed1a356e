"""Attack: `--replace` where lists name other people's files. It deletes what runs have stored there, nothing else."""

from __future__ import annotations

import dataclasses
import io
import os
import pty
from collections.abc import Callable
from pathlib import Path

import pytest

from job.commands import consent
from job.errors import InputError
from job.host.log import Log
from job.ledger.claim import Claim, examine, spec_bytes
from job.ledger.lease import KEY, Lease
from job.ledger.manifest import MANIFEST, SPEC, File, store_file
from job.ledger.receipts import Receipts
from job.ledger.replace import Replacement, carry_out, plan_replacement
from job.run import require_consent
from job.store import DirectoryStore, S3Store
from tests.unit.test_manifest import CONTENTS, SHA, a_manifest, a_spec, finished

LOG = Log(io.StringIO())
SPEC_OF_A_RUN = a_spec()
RUN = SPEC_OF_A_RUN.run_id


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_bytes(b"x")
    return DirectoryStore(tmp_path / "out")


def replaced(store: DirectoryStore) -> Replacement:
    planned = plan_replacement(store)
    with Lease(store, LOG) as lease:
        carry_out(planned, store, lease, LOG)
    return planned


def there(store: DirectoryStore) -> set[str]:
    return {item.key for item in store.list()}


def test_what_lists_name_is_deleted_and_the_rest_is_named(store: DirectoryStore, tmp_path: Path) -> None:
    finished(store, SPEC_OF_A_RUN, tmp_path, CONTENTS)
    others = {
        "notes.txt",
        "adapter/mine.bin",
        "checkpoints/mine",
        f"checkpoints/{RUN}/mine",
        f"checkpoints/{'f' * 16}/step-00000001/x",
    }
    for key in (*others, f"checkpoints/{RUN}/step-00000002/weights.safetensors"):
        store.write(key, b"x")
    planned = replaced(store)
    assert set(planned.kept) == there(store) == others
    assert planned.keys[-2:] == (MANIFEST, SPEC), "what says whose it is goes last"
    assert planned.left_alone().startswith(
        f"left alone: {', '.join(sorted(others - {'adapter/mine.bin'}))}; left alone, as nothing lists"
    )
    assert "adapter/mine.bin" in planned.left_alone()


def test_in_s3(bucket: str, tmp_path: Path) -> None:
    """What lies beside the prefix, or only begins like it, is another one's."""
    around, store = S3Store(f"s3://{bucket}"), S3Store(f"s3://{bucket}/run")
    finished(store, SPEC_OF_A_RUN, tmp_path, CONTENTS)
    others = {
        "run-2/adapter/adapter_model.safetensors",
        "adapter/adapter_model.safetensors",
        "manifest.json",
        "run/notes.txt",
    }
    for key in others:
        around.write(key, b"x")
    planned = plan_replacement(store)
    with Lease(store, LOG) as lease:
        carry_out(planned, store, lease, LOG)
    assert {item.key for item in around.list()} == others


def test_receipts_of_a_run_that_has_not_finished(store: DirectoryStore, tmp_path: Path) -> None:
    store.write(SPEC, spec_bytes(SPEC_OF_A_RUN))
    (tmp_path / "local").write_bytes(b"x")
    Receipts(store, RUN, LOG).add(
        "trained", [store_file(store, tmp_path / "local", "adapter/a"), File("../outside/kept", 1, SHA)], {}
    )
    store.write("adapter/half", b"stored, and not receipted")
    planned = replaced(store)
    assert there(store) == {"adapter/half"}
    said = (
        "left alone, as nothing lists them: adapter/half; "
        "a try that was cut short may have stored them, and then you may remove them"
    )
    assert planned.left_alone() == said
    assert said in planned.question(store.uri)
    assert (tmp_path / "outside" / "kept").exists()


FOREIGN = [
    "../outside/kept",
    "adapter/../../outside/kept",
    "/etc/passwd",
    "adapter//x",
    "notes.txt",
    "checkpoints/lease",
    "photos/1.jpg",
]


@pytest.mark.parametrize("key", [*FOREIGN, "{outside}"])
def test_a_manifest_that_lists_foreign_keys(key: str, store: DirectoryStore, tmp_path: Path) -> None:
    """Its digest is right: whoever wrote it wanted it to be believed."""
    whole = finished(store, SPEC_OF_A_RUN, tmp_path, CONTENTS)
    for name in ("notes.txt", "photos/1.jpg"):
        store.write(name, b"x")
    forged = [*whole.files, File(key.replace("{outside}", str(tmp_path / "outside" / "kept")), 1, SHA)]
    store.write(MANIFEST, dataclasses.replace(whole, files=forged).encode())
    with Lease(store, LOG) as lease:
        carry_out(plan_replacement(store), store, lease, LOG)
        assert KEY in there(store)
    assert {"notes.txt", "photos/1.jpg"} <= there(store)
    assert (tmp_path / "outside" / "kept").read_bytes() == b"x"
    assert Path("/etc/passwd").exists()


def test_folders_that_are_links(store: DirectoryStore, tmp_path: Path) -> None:
    finished(store, SPEC_OF_A_RUN, tmp_path, CONTENTS)
    store.delete("report/samples.md")
    store.delete("report/twin.md")
    (tmp_path / "out" / "report").rmdir()
    (tmp_path / "out" / "report").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "samples.md").write_bytes(b"x")
    replaced(store)
    assert (tmp_path / "outside" / "samples.md").exists()
    assert there(store) == {"report"}


@pytest.mark.parametrize(
    "found",
    [
        {"notes.txt": b"x"},
        {SPEC: b"{}"},
        {SPEC: b'{"openapi": "3.1.0"}', "report/samples.md": b"x"},
        {MANIFEST: b'{"name": "an app", "icons": []}', "report/index.html": b"x"},
    ],
    ids=str,
)
def test_what_no_run_has_stored_is_refused(store: DirectoryStore, found: dict[str, bytes]) -> None:
    for key, data in found.items():
        store.write(key, data)
    with pytest.raises(InputError, match="no run has stored what is there; nothing is deleted"):
        plan_replacement(store)
    assert there(store) == set(found)


def test_a_damaged_manifest_lists_nothing(store: DirectoryStore, tmp_path: Path) -> None:
    finished(store, SPEC_OF_A_RUN, tmp_path, {})
    store.write(MANIFEST, store.read(MANIFEST)[:-10])
    replaced(store)
    assert there(store) == {"adapter/adapter_model.safetensors", "stats.json"}


def test_a_replacement_that_is_cut_short_never_looks_finished_and_goes_on(
    store: DirectoryStore, tmp_path: Path
) -> None:
    finished(store, SPEC_OF_A_RUN, tmp_path, CONTENTS)
    planned = plan_replacement(store)
    for number in range(1, len(planned.keys)):
        store.delete(planned.keys[number - 1])
        again = plan_replacement(store)
        assert again.keys == planned.keys[number:], "the rest is known as long as anything is there"
        if MANIFEST in there(store):
            with pytest.raises(InputError, match="damaged"):
                examine(store, SPEC_OF_A_RUN)
        else:
            assert examine(store, SPEC_OF_A_RUN) is None


@pytest.mark.parametrize("change", ["another run", "a new file", "trained again"])
def test_what_nobody_has_looked_at_is_not_deleted(change: str, store: DirectoryStore, tmp_path: Path) -> None:
    finished(store, SPEC_OF_A_RUN, tmp_path, CONTENTS)
    planned = plan_replacement(store)
    if change == "another run":
        store.write(SPEC, spec_bytes(a_spec("another")))
    elif change == "a new file":
        store.write("adapter/new", b"x")
    else:
        files = [File(item.key, item.bytes, store.sha256(item.key)) for item in store.list() if item.key != MANIFEST]
        store.write(
            MANIFEST, dataclasses.replace(a_manifest(SPEC_OF_A_RUN, files), created="2030-01-01T00:00:00Z").encode()
        )
    before = there(store)
    with Lease(store, LOG) as lease, pytest.raises(InputError, match="has changed since"):
        Claim(store, SPEC_OF_A_RUN, lease, Receipts(store, RUN, LOG, anew=True), LOG, planned).clear()
    assert there(store) == before


def test_nothing_is_deleted_without_the_lease_and_nothing_reported_before(
    store: DirectoryStore, tmp_path: Path
) -> None:
    finished(store, SPEC_OF_A_RUN, tmp_path, CONTENTS)
    before = there(store)
    with Lease(store, LOG) as lease:
        claim = Claim(store, SPEC_OF_A_RUN, lease, Receipts(store, RUN, LOG, anew=True), LOG, plan_replacement(store))
        assert not claim.takes_reports()
        store.write(KEY, b"another 1")
        with pytest.raises(Exception, match="taken over"):
            claim.clear()
    assert there(store) - {KEY} == before


def test_the_report_of_a_failure_is_replaced_without_a_question(store: DirectoryStore) -> None:
    store.write("stats.json", b'{"status": "failed", "run_id": "0123456789abcdef", "report": []}')
    require_consent(plan_replacement(store), store, lambda question: pytest.fail(question))
    assert replaced(store).keys == ("stats.json",)
    assert there(store) == set()


@pytest.mark.parametrize(("answer", "deletes"), [("yes\n", True), ("no\n", False), ("\n", False), ("\x04", False)])
@pytest.mark.parametrize("json_lines", [False, True])
def test_on_a_terminal_it_asks(
    answer: str, deletes: bool, json_lines: bool, store: DirectoryStore,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    finished(store, SPEC_OF_A_RUN, tmp_path, CONTENTS)
    said = io.StringIO()
    ask = consent(Log(said, json_lines=json_lines))
    master, slave = pty.openpty()
    with os.fdopen(slave) as terminal, os.fdopen(master, "wb", buffering=0) as keyboard:
        monkeypatch.setattr("sys.stdin", terminal)
        keyboard.write(answer.encode())
        assert agreed(ask, store) == deletes
    question = capsys.readouterr().err if json_lines else said.getvalue()
    assert "7 objects" in question
    assert store.uri in question
    assert json_lines == (said.getvalue() == ""), "a question is not an event"


def test_elsewhere_it_does_not_ask(store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(store, SPEC_OF_A_RUN, tmp_path, CONTENTS)
    said = io.StringIO()
    with (tmp_path / "local").open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert agreed(consent(Log(said)), store)
    assert said.getvalue() == ""


def agreed(ask: Callable[[str], bool], store: DirectoryStore) -> bool:
    """Whether the run would go on."""
    try:
        require_consent(plan_replacement(store), store, ask)
    except InputError:
        return False
    return True
