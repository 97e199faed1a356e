"""A model repository on the Hub as a push sees it: what it must hold, what it holds, and what its refusals mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from job.errors import Fault, GateError, InputError, JobError, TransientError, classify
from job.host.credentials import mask
from job.hub.client import Answer, ask, digests, endpoint, is_listed
from job.store import safe_key

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

POINTER = "/output/hub/repository"
HINT = "Set HF_TOKEN to a token that may write to this repository"


@dataclass(frozen=True)
class Content:
    """A file as the repository must hold it: a large one is known by `sha256`, any other by `blob`, git's own hash."""

    key: str
    bytes: int
    sha256: str
    blob: str

    @classmethod
    def of(cls, file: BinaryIO, key: str) -> Content:
        """What an open file holds. Raises `PolicyError` for an unsafe key."""
        return cls(safe_key(key), *digests(file))

    def lies_in(self, files: Mapping[str, RepoFile]) -> bool:
        """Whether a listing has exactly this under its key."""
        found = files.get(self.key)
        return found is not None and found.size == self.bytes and is_listed(found, self.sha256, self.blob)


class Repository:
    """A model repository, approached with one token. Raises `InputError` without any."""

    def __init__(self, name: str, token: str) -> None:
        from huggingface_hub import HfApi

        if not token:
            raise InputError("a push to the Hub needs a token", where=POINTER, found="none", hint=HINT)
        self.name = name
        self._api = HfApi(endpoint=endpoint(), token=token)
        self.endpoint: str = self._api.endpoint

    def ask(self, request: Callable[[HfApi], Answer]) -> Answer:
        """The answer to requests that may be made again from the start if they fail in passing."""
        import httpx

        def translated() -> Answer:
            try:
                return request(self._api)
            except JobError:
                raise
            except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
                raise self._meaning(error) from error

        return ask(translated)

    def files(self, api: HfApi, revision: str) -> dict[str, RepoFile]:
        from huggingface_hub.hf_api import RepoFile

        tree = api.list_repo_tree(self.name, revision=revision, recursive=True)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _meaning(self, error: Exception) -> JobError:
        """What an exception of the client says about the job."""
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

        answer = next((link for link in (error, error.__cause__) if isinstance(link, HfHubHTTPError)), None)
        chain = [error] if answer in (None, error) else [error, answer]
        said = mask(" ".join(f"{self.name}: {type(error).__name__}: {' '.join(map(str, chain))}".split()))
        if isinstance(error, json.JSONDecodeError):
            return TransientError(f"{self.name}: the answer is not JSON, so not from a Hub")
        kind = type(classify(error))
        if answer is not None:
            status = answer.response.status_code
            if type(error) is ValueError and status == 400:
                return GateError(said, where="README.md", expected="a card whose metadata the Hub can read")
            # Where addresses are signed, and expire
            from_storage = not str(answer.response.url).startswith(f"{self.endpoint}/")
            # By someone else's commit
            moved = isinstance(answer, (RevisionNotFoundError, EntryNotFoundError)) or status == 412
            if from_storage or moved:
                kind = TransientError
        if kind is InputError and (answer is not None or isinstance(error, ValueError)):
            return InputError(said, where=POINTER, expected="a repository that the token may write to", hint=HINT)
        return (TransientError if kind is JobError else kind)(said)


def require(files: Mapping[str, RepoFile], contents: Iterable[Content]) -> None:
    """Raises `TransientError` naming every file that a listing lacks, or has otherwise than it should."""
    faults = []
    for content in contents:
        if not content.lies_in(files):
            expected = f"{content.bytes} bytes, sha256 {content.sha256}"
            faults.append(
                Fault(
                    "the Hub does not hold what was sent",
                    where=content.key,
                    found=_described(files.get(content.key)),
                    expected=expected,
                )
            )
    if faults:
        raise TransientError(*faults)


def _described(file: RepoFile | None) -> str:
    if file is None:
        return "no such file"
    return f"{file.size} bytes, {f'sha256 {file.lfs.sha256}' if file.lfs else f'git blob {file.blob_id}'}"
