"""The finished model on the Hugging Face Hub: everything to a branch of its own, then one commit that shows it on main.

    python -m job.hub.push REQUEST_JSON RESULT_JSON        in the environment that `environment` gives

Whoever reads main sees what was there before, or all that is new. The branch makes a push that was cut short go on
where it was: the Hub soon drops large files that no commit names. `tunejob.sha256` on main lists what we have put
there, for `sha256sum --check` and for the next push, which removes what it no longer has; files of anyone else stay.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from job.errors import InputError, TransientError
from job.host.child import serve
from job.hub.client import limit_writing
from job.hub.origin import OFFLINE
from job.hub.repository import Content, Repository, require

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete

MAIN, ACCESS, RECORD = "main", "tunejob-access", "tunejob.sha256"
RECORD_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
NO_IGNORED = "# a .gitignore in the repository does not hide our files\n"


@dataclass(frozen=True)
class PushReport:
    """What main shows: commit, address, our files and their bytes, and what an earlier push had left there."""

    commit: str
    url: str
    files: int
    bytes: int
    removed: tuple[str, ...]


@dataclass(frozen=True)
class Sent:
    """A local file and the key that it gets."""

    path: Path
    key: str


@dataclass(frozen=True)
class PushRequest:
    """One operation of this module; each takes what it needs of the rest. `contents` are what `stage` answered."""

    operation: Literal["check_access", "stage", "publish"]
    repository: str
    run_id: str = ""
    message: str = ""
    private: bool = False
    files: tuple[Sent, ...] = ()
    contents: tuple[Content, ...] = ()


@dataclass(frozen=True)
class PushAnswer:
    """`contents` of `stage`, `report` of `publish`."""

    contents: tuple[Content, ...] = ()
    report: PushReport | None = None


def environment(token: str) -> dict[str, str]:
    """What a child needs: the token for itself alone, the network, silence, and nothing else that we have switched off.

    Large files go over plain HTTPS, which works with any proxy and is what the tests prove; `HF_HUB_DISABLE_XET=0` in
    the job's environment chooses the Hub's own protocol.
    """
    kept = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    quiet = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",
        "HF_DEBUG": "0",
    }
    return {"HF_HUB_DISABLE_XET": "1", **kept, **quiet, "HF_TOKEN": token}


def check_access(repository: str, private: bool, token: str) -> None:
    """Makes sure, before anything is paid for, that a push can work; creates the repository if it is not there.

    Raises `InputError` for a token that is missing, unknown, read-only or somebody else's, and for a repository that
    everyone may read where a private one was asked for: the visibility of what is there is never changed.
    """
    hub = Repository(repository, token)
    hub.ask(lambda api: api.create_repo(repository, private=private, exist_ok=True))
    if private and not hub.ask(lambda api: api.model_info(repository)).private:
        hint = "Make it private on the Hub, choose another name, or set private to false"
        raise InputError(
            f"{repository} is there already",
            where="/output/hub/private",
            found="a public repository",
            expected="a private one",
            hint=hint,
        )
    # What a token may do is best seen by doing it
    hub.ask(lambda api: api.create_branch(repository, branch=ACCESS, exist_ok=True))
    hub.ask(lambda api: _delete(repository, api, ACCESS))


def stage(files: Sequence[tuple[Path, str]], repository: str, run_id: str, token: str) -> list[Content]:
    """Sends local files to the branch of this run and reads back that they are there; may be called file by file.

    Raises `InputError` if the Hub refuses, and `TransientError` for the network or a file that did not arrive whole,
    after own retries.
    """
    hub, branch = Repository(repository, token), branch_of(run_id)
    paths: dict[Content, Path] = {}
    for path, key in files:
        with path.open("rb") as file:
            paths[Content.of(file, key)] = path
    hub.ask(lambda api: api.create_branch(repository, branch=branch, exist_ok=True))
    hub.ask(lambda api: _send(hub, api, branch, paths))
    return list(paths)


def publish(contents: Sequence[Content], repository: str, run_id: str, message: str, token: str) -> PushReport:
    """Shows what was staged on main in one commit, with no other file of an earlier push beside it, reads it back, and
    deletes the branch. Until all is whole, main stays as it was.

    Raises as `stage` does, and `GateError` for a card that the Hub cannot read.
    """
    hub, branch = Repository(repository, token), branch_of(run_id)
    commit, removed = hub.ask(lambda api: _show(hub, api, branch, contents, message))
    hub.ask(lambda api: _delete(repository, api, branch))
    url = f"{hub.endpoint}/{repository}/tree/{commit}"
    return PushReport(commit, url, len(contents), sum(content.bytes for content in contents), removed)


def branch_of(run_id: str) -> str:
    return f"tunejob-{run_id}"


# ------------------------------------------------------------------------------------------------ steps


def _send(hub: Repository, api: HfApi, branch: str, paths: Mapping[Content, Path]) -> None:
    there = hub.files(api, branch)
    missing = {content: str(path) for content, path in paths.items() if not content.lies_in(there)}
    if missing:
        _commit(hub, api, branch, missing, [], "Files on their way to main")
        there = hub.files(api, branch)
    require(there, paths)


def _show(
    hub: Repository, api: HfApi, branch: str, contents: Sequence[Content], message: str
) -> tuple[str, tuple[str, ...]]:
    """The commit on main that holds `contents`, and the keys it removes. A second call finds everything done."""
    from huggingface_hub import CommitOperationCopy, CommitOperationDelete

    heads = {ref.name: ref.target_commit for ref in api.list_repo_refs(hub.name).branches}
    before = hub.files(api, heads[MAIN])
    text = "".join(
        f"{content.sha256}  {content.key}\n" for content in sorted(contents, key=lambda content: content.key)
    ).encode()
    record = Content.of(io.BytesIO(text), RECORD)
    if all(content.lies_in(before) for content in (*contents, record)):
        return heads[MAIN], ()
    if branch not in heads:
        raise TransientError(f"{hub.name}: the branch {branch} is gone")
    require(hub.files(api, heads[branch]), contents)
    changed = [content.key for content in contents if not content.lies_in(before)]
    removed = _left_over(hub, api, heads[MAIN], before, contents)
    operations: list[CommitOperation] = [CommitOperationCopy(key, key, src_revision=heads[branch]) for key in changed]
    operations += [CommitOperationDelete(key) for key in removed]
    commit = _commit(hub, api, MAIN, {record: text}, operations, message, heads[MAIN])
    require(hub.files(api, commit), [*contents, record])
    return commit, removed


def _commit(
    hub: Repository,
    api: HfApi,
    branch: str,
    added: Mapping[Content, str | bytes],
    operations: Iterable[CommitOperation],
    message: str,
    parent: str | None = None,
) -> str:
    """One commit of files, by path or content, and other operations; refused if `parent` is not the branch's head."""
    from huggingface_hub import CommitOperationAdd

    additions = []
    for content, source in added.items():
        addition = CommitOperationAdd(content.key, source)
        addition.upload_info.sha256 = bytes.fromhex(content.sha256)  # or the client would read the whole file for it
        additions.append(addition)
    api.preupload_lfs_files(hub.name, additions, revision=branch, free_memory=False, gitignore_content=NO_IGNORED)
    made = api.create_commit(
        hub.name, [*additions, *operations], commit_message=message, revision=branch, parent_commit=parent
    )
    return made.oid


def _left_over(
    hub: Repository, api: HfApi, head: str, before: Mapping[str, RepoFile], contents: Iterable[Content]
) -> tuple[str, ...]:
    """Keys that an earlier push has recorded, this one lacks, and nobody has filled with something else since."""
    if RECORD not in before:
        return ()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(api.hf_hub_download(hub.name, RECORD, revision=head, local_dir=folder)).read_text(
            "utf-8", "replace"
        )
    ours = {found[2]: found[1] for line in text.split("\n") if (found := RECORD_LINE.fullmatch(line))}
    for content in contents:
        ours.pop(content.key, None)
    return tuple(
        sorted(
            key
            for key, sha256 in ours.items()
            if (file := before.get(key)) and (not file.lfs or file.lfs.sha256 == sha256)
        )
    )


def _delete(name: str, api: HfApi, branch: str) -> None:
    if branch in {ref.name for ref in api.list_repo_refs(name).branches}:
        api.delete_branch(name, branch=branch)


# ------------------------------------------------------------------------------------------------ the child


def handle(request: PushRequest) -> PushAnswer:
    """What `request.operation` names of the functions above; the token is in the environment."""
    limit_writing()
    token, files = os.environ.get("HF_TOKEN", ""), [(file.path, file.key) for file in request.files]
    name, run_id = request.repository, request.run_id
    match request.operation:
        case "check_access":
            check_access(name, request.private, token)
            return PushAnswer()
        case "stage":
            return PushAnswer(contents=tuple(stage(files, name, run_id, token)))
        case "publish":
            return PushAnswer(report=publish(request.contents, name, run_id, request.message, token))


if __name__ == "__main__":
    serve(handle)
