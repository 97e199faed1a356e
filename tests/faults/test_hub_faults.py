"""Faults on the wire between the job and a Hub: survived, or reported within a bound; a damaged file is never taken."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from job.errors import JobError
from job.host.fork_server import ForkServer
from job.hub.origin import HubOrigin
from tests.faults.proxy import ENDLESS, Kind, Proxy, Trouble, proxy_to
from tests.servers import Hub

FILE = os.urandom(300_000)
# The client's own limits and ours, cut short; its metadata requests are repeated with up to 23 s of pauses.
LIMITS = {
    "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    "HF_HUB_ETAG_TIMEOUT": "1",
    "TUNEJOB_HUB_PATIENCE_SECONDS": "3",
    "TUNEJOB_HUB_WINDOW_SECONDS": "1.5",
}
BOUND_SECONDS = 60
REQUESTS = {
    "metadata": "GET /api/models/org/name",
    "list": "GET .*/tree/.*",
    "head": "HEAD .*/resolve/.*",
    "file": "GET (.*/resolve/.*|/cdn/.*)",
}


@pytest.fixture
def proxy(hub: Hub, clean_environment: pytest.MonkeyPatch) -> Iterator[Proxy]:
    hub.large_bytes = 1 << 30  # no redirect: every byte goes through the proxy
    hub.repo("org/name").commit({"config.json": b"{}", "model.safetensors": FILE})
    with proxy_to(hub.endpoint) as server:
        clean_environment.setenv("HF_ENDPOINT", server.url)
        clean_environment.setenv("HF_HUB_DISABLE_XET", "1")
        yield server


def main(folder: str) -> int:
    """In a forked process: fetches the model into `folder`."""
    try:
        origin = HubOrigin("hf://org/name", "model")
        assert [file.key for file in origin.files()] == ["config.json", "model.safetensors"]
        origin.stage(["model.safetensors", "config.json"], Path(folder))
    except JobError as error:
        print(error)
        return error.exit_code
    return 0


@cache
def client(limits: tuple[tuple[str, str], ...]) -> ForkServer:
    """Forks processes that have the Hub's client, which reads its limits when it is imported: in a process of its own,
    for this one has the proxy's thread."""
    return ForkServer(("huggingface_hub.hf_api", __name__), {**os.environ, **dict(limits)})


def fetch(folder: Path, **limits: str) -> tuple[int, str]:
    """Its exit code, and what it said."""
    with (folder / "said").open("w+") as said, open(os.devnull) as nothing:
        streams = [nothing.fileno(), said.fileno(), said.fileno()]
        server, asked = client(tuple(limits.items())), {**os.environ, **limits}
        code = server.fork(f"{__name__}:main", [str(folder / "model")], folder, asked, streams).wait(120)
        return code, (folder / "said").read_text()


@pytest.mark.parametrize("request_", list(REQUESTS))
@pytest.mark.parametrize("kind", [Kind.SLOW_DOWN, Kind.RESET, Kind.EMPTY, Kind.TRUNCATE, Kind.CORRUPT])
def test_four_faults_in_a_row_are_survived(proxy: Proxy, tmp_path: Path, request_: str, kind: Kind) -> None:
    if (kind is Kind.CORRUPT and request_ != "file") or (kind in (Kind.EMPTY, Kind.TRUNCATE) and request_ == "head"):
        pytest.skip("an answer to HEAD has no body; what lists the files comes over TLS")
    trouble = Trouble(kind, REQUESTS[request_], times=4)
    proxy.order(trouble)
    code, said = fetch(tmp_path)
    assert (code, trouble.met) == (0, 4), said
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == FILE
    assert (tmp_path / "model" / "config.json").read_bytes() == b"{}"


WAITING = [Kind.STALL, Kind.STALL_BODY, Kind.DRIP_BODY]  # ten seconds each: others of them are in make long
ENDED = [
    *product(["metadata", "file"], [Kind.SLOW_DOWN, Kind.RESET, Kind.TRUNCATE]),
    ("file", Kind.CORRUPT),  # metadata come over TLS
    *(("metadata", Kind.STALL), ("file", Kind.STALL_BODY), ("file", Kind.DRIP_BODY)),
]
LONG = [
    pytest.param(*case, marks=pytest.mark.long) for case in product(["metadata", "file"], WAITING) if case not in ENDED
]


@pytest.mark.parametrize(("request_", "kind"), [*ENDED, *LONG])
def test_endless_faults_are_reported_within_a_bound(proxy: Proxy, tmp_path: Path, request_: str, kind: Kind) -> None:
    proxy.order(Trouble(kind, REQUESTS[request_], times=ENDLESS))
    begun = time.monotonic()
    code, said = fetch(tmp_path, **LIMITS)
    print(kind.name, request_, f"{time.monotonic() - begun:.1f} s")
    assert code == 20, said
    assert time.monotonic() - begun < BOUND_SECONDS
    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_a_hundred_corruptions_are_all_caught(hub: Hub, proxy: Proxy, tmp_path: Path) -> None:
    """One bit at random in the first download of each of 100 files: all 100 are right in the end."""
    files = {f"{number:03}.json": os.urandom(3000) for number in range(100)}
    hub.repo("org/many").commit(files)
    origin = HubOrigin("hf://org/many", "model")
    trouble = Trouble(Kind.CORRUPT, REQUESTS["file"], of_each=True)
    proxy.order(trouble)
    origin.stage(files, tmp_path)
    assert trouble.met == 100
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
