"""How the Hub is asked: with which token, how often again, and for how long.

Its own client would wait for ever for a silent server, and for bytes that only drip.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from job.errors import InputError, TransientError
from job.host.proxies import require_address, require_certificates, require_proxies
from job.host.time_limits import limit

if TYPE_CHECKING:
    import httpx
    from huggingface_hub.hf_api import RepoFile

Answer = TypeVar("Answer")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
CHUNK_BYTES = 1 << 20
CONNECT_SECONDS, READ_SECONDS, WRITE_SECONDS = 30, 120, 120
SILENCE_SECONDS = 10.0  # of metadata and, unless HF_HUB_DOWNLOAD_TIMEOUT says otherwise, of files
TRIES_AGAIN = 4
WINDOW_BYTES = 1 << 20  # what has to come in TUNEJOB_HUB_WINDOW_SECONDS


def token() -> str:
    """The environment's; empty where it has none."""
    return next((os.environ[name] for name in TOKENS if os.environ.get(name)), "")


def endpoint() -> str | None:
    """huggingface_hub reads the variable at import; the run may set it later. Raises `InputError` for what is not
    an address, and for proxies and certificates that its client cannot use.
    """
    require_proxies("http", "https", "all", socks=True)
    require_certificates("SSL_CERT_FILE")
    found = require_address("HF_ENDPOINT")
    if found and ("?" in found or "#" in found):  # what comes after would become a part of that
        said, wanted = "the Hub's address has more than a path", "https://host or https://host/path"
        raise InputError(said, where="HF_ENDPOINT", found="a ? or a # in it", expected=wanted)
    return found


def ask(request: Callable[[], Answer], patience_seconds: float = math.inf) -> Answer:
    """The answer to a request that may be made again from the start where it fails in passing, `TransientError`."""
    patient_until = time.monotonic() + patience_seconds
    pauses_seconds = [limit("TUNEJOB_HUB_PAUSE_SECONDS") * 2**number for number in range(TRIES_AGAIN)]
    for pause in (*pauses_seconds, None):
        try:
            return request()
        except TransientError:
            if pause is None or time.monotonic() > patient_until:
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def is_listed(file: RepoFile | None, sha256: str, blob: str) -> bool:
    """Whether the Hub lists a file with this content: `sha256` of it, and `blob`, git's name for it."""
    return file is not None and (file.lfs.sha256 == sha256 if file.lfs else file.blob_id == blob)


def digests(file: BinaryIO) -> tuple[int, str, str]:
    """Bytes of an open file, their SHA-256, and git's name for them."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while chunk := file.read(CHUNK_BYTES):
        sha256.update(chunk)
        blob.update(chunk)
    return size, sha256.hexdigest(), blob.hexdigest()


def limit_writing() -> None:
    """For pushes, where the Hub takes its time over a commit: the client would wait for a silent server for ever."""
    import httpx
    from huggingface_hub import set_client_factory

    timeout = httpx.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS, write=WRITE_SECONDS, pool=None)
    set_client_factory(lambda: httpx.Client(follow_redirects=True, timeout=timeout))


@cache
def limit_waiting() -> None:
    """Gives the client limits; its own retries then go on where a file broke off."""
    import httpx
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def limited() -> httpx.Client:
        client = default_client_factory()
        client.timeout = httpx.Timeout(SILENCE_SECONDS)
        client.event_hooks = {**client.event_hooks, "response": [_pace]}
        return client

    set_client_factory(limited)


def _pace(response: httpx.Response) -> None:
    response.stream = _paced(response.stream, response.request)


def _paced(stream: Any, request: httpx.Request) -> httpx.SyncByteStream:
    import httpx

    window_seconds = limit("TUNEJOB_HUB_WINDOW_SECONDS")

    class Paced(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            waited_seconds, come_bytes = 0.0, 0
            blocks = iter(stream)
            while True:
                began = time.monotonic()
                block = next(blocks, None)
                if block is None:
                    return
                waited_seconds, come_bytes = waited_seconds + time.monotonic() - began, come_bytes + len(block)
                if come_bytes >= WINDOW_BYTES:
                    waited_seconds, come_bytes = 0.0, 0
                elif waited_seconds > window_seconds:
                    raise httpx.ReadTimeout(f"{come_bytes} bytes in {waited_seconds:.0f} s", request=request)
                yield block

        def close(self) -> None:
            stream.close()

    return Paced()
