"""What boto3 does not do about a bad wire: patience, and a limit on how long one answer may take.

botocore's standard mode repeats a request within six seconds at most and out of a budget that twelve faulty requests
use up; it takes a truncated answer for a whole one, and waits for ever for an answer that comes byte by byte.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from job.errors import PASSING_STATUS, TransientError, classify
from job.host.time_limits import limit

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ATTEMPTS = 5  # so four faults in a row are survived however long each takes
LONGEST_PAUSE_SECONDS = 20.0
TICK_SECONDS = 1.0
NO_CONTENT, NOT_OFFERED = 204, 501
# The bytes suffered on the way to the server.
DAMAGED_CODES = {
    "BadDigest",
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
    "IncompleteBody",
    "MalformedXML",
    "InvalidPart",
    "InvalidPartOrder",
}


def be_patient(client: S3Client) -> None:
    """Repeats the requests of `client` that fail for the wire's or the server's sake, and hurries its connections."""
    attempts = int(os.environ.get("AWS_MAX_ATTEMPTS") or ATTEMPTS)
    patience_seconds = 0.0 if os.environ.get("AWS_MAX_ATTEMPTS") else limit("TUNEJOB_S3_PATIENCE_SECONDS")
    handler: Any = _Patience(attempts, patience_seconds).pause_seconds
    client.meta.events.register("needs-retry.s3", handler)
    # The one place where botocore lets nobody in; both its direct and its proxied connections come from this table.
    pools: dict[str, Any] = client._endpoint.http_session._pool_classes_by_scheme  # type: ignore[attr-defined]
    pools.update(_hurried_pools())


class _Patience:
    """When a request is sent again: four times in any case, and then until patience ends."""

    def __init__(self, attempts: int, patience_seconds: float) -> None:
        self._attempts, self._patience_seconds = attempts, patience_seconds

    def pause_seconds(
        self, attempts: int, caught_exception: Exception | None, response: Any, request_dict: dict[str, Any], **_: Any
    ) -> float | None:
        """The handler of botocore's `needs-retry`: None ends the trying."""
        damaged = caught_exception is None and response[1].get("Error", {}).get("Code") in DAMAGED_CODES
        if not (damaged or (_passing_error(caught_exception) if caught_exception else _passing_answer(*response))):
            return None
        failing_since: float = request_dict["context"].setdefault("tunejob_failing_since", time.monotonic())
        failing_seconds = time.monotonic() - failing_since
        if attempts < self._attempts or (failing_seconds < self._patience_seconds and not damaged):
            return random.uniform(0.5, 1.0) * min(0.05 * 2.0**attempts, LONGEST_PAUSE_SECONDS)  # noqa: S311
        if caught_exception is None:
            return None
        # Not the exception itself: s3transfer would take some of them for a new fault and begin again.
        asked = f"{request_dict['method']} {request_dict['url']}"
        said = f"{type(caught_exception).__name__}: {caught_exception}"
        raise TransientError(
            f"{asked}: {said}: given up after {attempts} tries in {failing_seconds:.0f} s"
        ) from caught_exception


def _passing_error(error: Exception) -> bool:
    """Whether it is the wire's; TLS complains of damaged bytes in the same words as of certificates, but for one."""
    from botocore.exceptions import SSLError

    damaged = isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return damaged or isinstance(classify(error), TransientError)


def _passing_answer(http_response: Any, parsed: Mapping[str, Any]) -> bool:
    """Whether an error of the service may pass; some are sent with status 200, once the work has taken long."""
    status: int = http_response.status_code
    if status < 300:
        return "Error" in parsed
    return (status >= 500 and status != NOT_OFFERED) or status in PASSING_STATUS


# ------------------------------------------------------------------------------------------ connections


class _Deadlines:
    """Shuts connections down whose request has taken too long; whoever waits for them then finds them closed."""

    def __init__(self) -> None:
        self._due: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="s3-deadlines", daemon=True).start()

    def begin(self, connection: socket.socket) -> None:
        """A request begins on `connection`. One that ended long ago is shut down, too: nobody waits for it."""
        with self._lock:
            self._due[connection] = time.monotonic() + limit("TUNEJOB_S3_REQUEST_SECONDS")

    def _watch(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            with self._lock:
                late = [
                    connection
                    for connection, due in self._due.items()
                    if due < time.monotonic() or connection.fileno() < 0
                ]
                for connection in late:
                    del self._due[connection]
            for connection in late:
                with suppress(OSError):  # closed already
                    # Of the plain socket: that of a TLS socket would forget the session, and what is left be read
                    # undeciphered.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)


@cache
def _deadlines() -> _Deadlines:
    return _Deadlines()


@cache
def _hurried_pools() -> dict[str, type]:
    """botocore's connection pools by scheme, with deadlines, and an error for an answer shorter than announced."""
    from botocore.awsrequest import AWSHTTPConnectionPool, AWSHTTPSConnectionPool

    return {"http": _hurried(AWSHTTPConnectionPool), "https": _hurried(AWSHTTPSConnectionPool)}


def _hurried(pool: Any) -> type:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        def request(self, *args: Any, **kwargs: Any) -> None:
            if self.sock is None:
                self.connect()
            _deadlines().begin(self.sock)
            super().request(*args, **kwargs)

        def getresponse(self) -> Any:
            """Raises `HTTPException` for an answer of unknown length: its head was cut, its body would seem empty."""
            response = super().getresponse()
            lengths = {"content-length", "transfer-encoding"} & {name.lower() for name in response.headers}
            if 200 <= response.status < 300 and response.status != NO_CONTENT and not lengths:
                raise HTTPException("the answer does not say how long it is")
            return response

    class Pool(pool):  # type: ignore[misc]
        ConnectionCls = Connection

        def urlopen(self, *args: Any, **kwargs: Any) -> Any:
            return super().urlopen(*args, **kwargs | {"enforce_content_length": True})

    return Pool
