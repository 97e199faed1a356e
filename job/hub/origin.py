"""The Hugging Face Hub as an origin. A name is resolved to a commit once; everything after uses that commit."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from job.errors import InputError, JobError, TransientError
from job.host.parallel import in_parallel
from job.host.time_limits import limit
from job.hub.client import SILENCE_SECONDS, TOKENS, Answer, ask, digests, endpoint, is_listed, limit_waiting, token
from job.store import Stored, safe_key
from job.store.base import translating_errors

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, HfApi, ModelInfo
    from huggingface_hub.hf_api import RepoFile

COMMIT = re.compile(r"[0-9a-f]{40}")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
ACCESS_HINT = "If it is private or gated, set HF_TOKEN to a token that may read it"
AWAY_HINT = "HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror; a folder of this machine needs neither"


class HubOrigin:
    """`org/name` at one commit. Raises `InputError` for an unknown, private or gated repository or revision."""

    def __init__(self, address: str, kind: Literal["model", "dataset"]) -> None:
        self.public_id, _, asked = address.removeprefix("hf://datasets/" if kind == "dataset" else "hf://").partition(
            "@"
        )
        _be_quiet()
        limit_waiting()
        self._kind = kind
        self._token: str | Literal[False] = token() or False
        read = self._api().model_info if kind == "model" else self._api().dataset_info
        info: ModelInfo | DatasetInfo = self._ask(
            lambda: read(self.public_id, revision=asked or None, timeout=SILENCE_SECONDS)
        )
        if not info.sha or not COMMIT.fullmatch(info.sha):
            raise InputError(f"{address}: the Hub gave no commit", found=ascii(info.sha), expected="40 hex digits")
        self.revision: str = info.sha
        self.licence: str | None = info.card_data.get("license") if info.card_data else None

    def files(self) -> list[Stored]:
        return sorted((Stored(safe_key(file.path), file.size) for file in self._tree.values()), key=lambda f: f.key)

    @cached_property
    def _tree(self) -> dict[str, RepoFile]:
        from huggingface_hub.hf_api import RepoFile

        tree = self._ask(
            lambda: list(
                self._api().list_repo_tree(self.public_id, repo_type=self._kind, revision=self.revision, recursive=True)
            )
        )
        return {file.path: file for file in tree if isinstance(file, RepoFile)}

    def stage(self, names: Iterable[str], folder: Path) -> None:
        announced = self._tree
        in_parallel(lambda name: self._ask(lambda: self._download(announced[name], folder)), names)

    def _download(self, file: RepoFile, folder: Path) -> None:
        """Raises `TransientError` for a file of another digest than this commit's: the client looks at sizes alone."""
        from huggingface_hub import hf_hub_download

        path = Path(
            hf_hub_download(
                self.public_id,
                file.path,
                repo_type=self._kind,
                revision=self.revision,
                local_dir=folder,
                token=self._token,
                endpoint=endpoint(),
            )
        )
        with path.open("rb") as content:
            _, sha256, blob = digests(content)
        if not is_listed(file, sha256, blob):
            path.unlink()
            raise TransientError(f"hf://{self.public_id}: {file.path} was damaged on its way")

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=endpoint(), token=self._token)

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        def translated() -> Answer:
            with _translating(f"hf://{'datasets/' if self._kind == 'dataset' else ''}{self.public_id}"):
                return request()

        return ask(translated, limit("TUNEJOB_HUB_PATIENCE_SECONDS"))


@contextmanager
def _translating(address: str) -> Iterator[None]:
    import httpx
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with translating_errors(address, httpx.HTTPError, HFValidationError, OSError):
            yield
    except JobError as error:
        cause = error.__cause__
        if isinstance(cause, GatedRepoError):
            raise InputError(
                f"{address}: access is gated", expected="a token that may read it", hint=ACCESS_HINT
            ) from cause
        if isinstance(cause, RevisionNotFoundError):
            raise InputError(f"{address}: there is no such revision", expected="a branch, tag or commit") from cause
        if isinstance(cause, RepositoryNotFoundError):
            raise InputError(f"{address}: there is no such repository", hint=ACCESS_HINT) from cause
        if isinstance(cause, httpx.ConnectError):
            raise TransientError(f"{address}: the Hub is not within reach: {cause}", hint=AWAY_HINT) from cause
        if type(error) is JobError:  # such as a file that came shorter than announced
            raise TransientError(*error.faults) from cause
        raise
    except json.JSONDecodeError as error:
        raise TransientError(f"{address}: the answer is not JSON, so not from a Hub") from error


def _be_quiet() -> None:
    """Without this the client first asks the Hub for a list of agents, to report whether it is one."""
    _set("HF_HUB_DISABLE_TELEMETRY")


def _set(*variables: str) -> None:
    """Set switches of huggingface_hub and libraries like it, also where they were read already, at import."""
    from huggingface_hub import constants

    for name in variables:
        os.environ[name] = "1"
        for module in (constants, sys.modules.get("datasets.config")):
            if module is not None and name in module.__dict__:
                module.__dict__[name] = True


def without_hub(environment: Mapping[str, str]) -> dict[str, str]:
    """The same for a process that never asks the Hub."""
    return {name: value for name, value in environment.items() if name not in TOKENS} | dict.fromkeys(OFFLINE, "1")


def go_offline() -> None:
    """From here on nothing asks the Hub, and no token is left in the environment for others to find."""
    _set(*OFFLINE)
    for name in TOKENS:
        os.environ.pop(name, None)
