"""The Hub's client would wait for ever for a silent server, and for bytes that only drip: neither goes on for long
here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from job.host.time_limits import limit

if TYPE_CHECKING:
    import httpx

SILENCE_SECONDS = 10.0  # of metadata and, unless HF_HUB_DOWNLOAD_TIMEOUT says otherwise, of files
TRIES_AGAIN = 4
WINDOW_BYTES = 1 << 20  # what has to come in TUNEJOB_HUB_WINDOW_SECONDS


def pauses_seconds() -> list[float]:
    """Before the second to the fifth try of a request that failed in passing: 1, 2, 4 and 8 seconds."""
    return [limit("TUNEJOB_HUB_PAUSE_SECONDS") * 2**number for number in range(TRIES_AGAIN)]


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
