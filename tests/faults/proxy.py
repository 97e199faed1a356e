"""Proxies on loopback that do to chosen requests what networks and overloaded servers do."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from threading import Event, Lock, Thread
from urllib.parse import urlsplit

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
ENDLESS = 1 << 30
AT_ONCE = struct.pack("ii", 1, 0)  # a close then resets the connection
DRIP_SECONDS = 0.2
LIMIT_BYTES = 1 << 20


class Kind(Enum):
    SLOW_DOWN = auto()  # 503, without asking the server
    EXPIRED = auto()  # 403 ExpiredToken, likewise
    DENIED = auto()  # 403 AccessDenied, likewise
    RESET = auto()  # the connection is reset before the server sees the request
    LOST = auto()  # the server does it, then the connection is reset
    TRUNCATE = auto()  # half of the answer's body, then the end
    EMPTY = auto()  # the head of the answer, then the end
    HALF_HEAD = auto()  # half of the head of the answer, then the end
    CORRUPT = auto()  # one bit of the answer's body is flipped
    CORRUPT_UP = auto()  # one bit of the request's body is flipped
    STALL = auto()  # no answer at all
    STALL_BODY = auto()  # half of the answer's body, then silence
    DRIP = auto()  # the answer comes byte by byte, head and all
    DRIP_BODY = auto()  # its head comes at once, its body byte by byte
    DRIP_UP = auto()  # the request is taken byte by byte


REFUSALS = {
    Kind.SLOW_DOWN: (b"503 Slow Down", SLOW_DOWN),
    Kind.EXPIRED: (b"403 Forbidden", EXPIRED),
    Kind.DENIED: (b"403 Forbidden", DENIED),
}


@dataclass
class Trouble:
    """What happens to requests whose "METHOD target" matches `request` as a whole: to the next `times`, or to the first
    `times` of each different request."""

    kind: Kind
    request: str = ".*"
    times: int = 1
    of_each: bool = False
    met: int = 0


@dataclass
class Message:
    head: bytes
    body: bytes = b""

    @property
    def asked(self) -> str:
        """METHOD target"""
        return self.head.partition(b"\r\n")[0].rpartition(b" ")[0].decode("latin-1")

    def header(self, name: str) -> str:
        found = re.search(rf"(?im)^{name}:\s*(.*?)\r?$", self.head.decode("latin-1"))
        return found[1] if found else ""


class _Server(Thread):
    """An asyncio server on a free port of loopback, in a thread of its own."""

    def __init__(self, upstream: str) -> None:
        super().__init__(daemon=True)
        self.upstream = urlsplit(upstream)
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = Event()
        self.start()
        assert self._ready.wait(10)

    @property
    def url(self) -> str:
        return f"{self.upstream.scheme}://127.0.0.1:{self.port}"

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LIMIT_BYTES))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            there = await asyncio.open_connection(self.upstream.hostname, self.upstream.port, limit=LIMIT_BYTES)
            try:
                await self._exchange(reader, writer, *there)
            finally:
                there[1].close()
        writer.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        requests: asyncio.StreamWriter,
    ) -> None:
        raise NotImplementedError


class Proxy(_Server):
    """Forwards HTTP to `upstream` with the troubles that are ordered; `seen` has each "METHOD target"."""

    def __init__(self, upstream: str) -> None:
        self.seen: list[str] = []
        self._troubles: list[Trouble] = []
        self._counts: Counter[str] = Counter()
        self._lock = Lock()
        super().__init__(upstream)

    def order(self, *troubles: Trouble) -> None:
        """These troubles from now on, and no others; counts begin anew."""
        with self._lock:
            self._troubles = list(troubles)
            self._counts.clear()
            self.seen.clear()

    def asked(self, request: str) -> int:
        return sum(bool(re.fullmatch(request, asked)) for asked in self.seen)

    def _kind(self, asked: str) -> Kind | None:
        with self._lock:
            self.seen.append(asked)
            self._counts[asked] += 1
            for trouble in self._troubles:
                if (
                    re.fullmatch(trouble.request, asked)
                    and (self._counts[asked] if trouble.of_each else trouble.met + 1) <= trouble.times
                ):
                    trouble.met += 1
                    return trouble.kind
        return None

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        requests: asyncio.StreamWriter,
    ) -> None:
        request = Message(await reader.readuntil(b"\r\n\r\n"))
        kind = self._kind(request.asked)
        if request.header("Expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while kind is Kind.DRIP_UP and await reader.read(1):
            await asyncio.sleep(DRIP_SECONDS)
        request.body = await reader.readexactly(int(request.header("Content-Length") or 0))
        if kind is Kind.STALL:
            await reader.read()  # until the client has had enough
        elif kind is Kind.RESET:
            _reset(writer)
        elif kind in REFUSALS:
            await _refuse(kind, request, writer)
        else:
            if kind is Kind.CORRUPT_UP:
                request.body = _flipped(request.body)
            answer = await _forwarded(request, answers, requests)
            await _answer(answer, kind, reader, writer)


async def _refuse(kind: Kind, request: Message, writer: asyncio.StreamWriter) -> None:
    status, body = REFUSALS[kind]
    sent = b"" if request.asked.startswith("HEAD") else body
    writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), sent))
    await writer.drain()


async def _forwarded(request: Message, answers: asyncio.StreamReader, requests: asyncio.StreamWriter) -> Message:
    """The server's whole answer, its length announced."""
    kept = re.sub(rb"(?im)^(expect|connection):.*\r\n", b"", request.head)
    requests.write(kept[:-2] + b"Connection: close\r\n\r\n" + request.body)
    await requests.drain()
    head = await answers.readuntil(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head = await answers.readuntil(b"\r\n\r\n")
    answer = Message(_closing(head))
    if not request.asked.startswith("HEAD"):
        answer.body = await answers.read()
    if answer.header("Transfer-Encoding").lower() == "chunked":
        answer.body = _joined(answer.body)
        answer.head = re.sub(rb"(?im)^transfer-encoding:.*\r\n", b"", answer.head)[
            :-2
        ] + b"Content-Length: %d\r\n\r\n" % len(answer.body)
    return answer


def _closing(head: bytes) -> bytes:
    """One answer a connection, and it says so: else a client would send its next request into the close."""
    return re.sub(rb"(?im)^connection:.*\r\n", b"", head)[:-2] + b"Connection: close\r\n\r\n"


async def _answer(
    answer: Message, kind: Kind | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    if kind is Kind.LOST:
        return _reset(writer)
    body = _flipped(answer.body) if kind is Kind.CORRUPT else answer.body
    if kind is Kind.DRIP_BODY:
        writer.write(answer.head)
        return await _drip(body, writer)
    if kind is Kind.DRIP:
        return await _drip(answer.head + body, writer)
    half = len(body) // 2
    if kind is Kind.HALF_HEAD:
        answer.head, body = answer.head[: len(answer.head) // 2], b""
    writer.write(answer.head + body[: {Kind.EMPTY: 0, Kind.TRUNCATE: half, Kind.STALL_BODY: half}.get(kind, len(body))])
    await writer.drain()
    if kind is Kind.STALL_BODY:
        await reader.read()
    return None


async def _drip(data: bytes, writer: asyncio.StreamWriter) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)


def _flipped(body: bytes) -> bytes:
    if not body:
        return body
    at = random.randrange(len(body))
    return body[:at] + bytes([body[at] ^ 1 << random.randrange(8)]) + body[at + 1 :]


def _joined(chunked: bytes) -> bytes:
    """The body that was sent in chunks."""
    joined = b""
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if not length:
            break
        joined, chunked = joined + rest[:length], rest[length + 2 :]
    return joined


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()


class Wire(_Server):
    """Carries bytes to `upstream`, TLS or not. In each of the next `times` connections, what comes back is damaged, or
    begins to drip, after `after_bytes`."""

    def __init__(self, upstream: str, kind: Kind, times: int, after_bytes: int) -> None:
        self.kind, self.times, self.after_bytes = kind, times, after_bytes
        super().__init__(upstream)

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        requests: asyncio.StreamWriter,
    ) -> None:
        upwards = asyncio.create_task(_carry(reader, requests))
        bad, come = True, 0
        while data := await answers.read(1 << 16):
            come += len(data)
            if bad and self.times > 0 and come > self.after_bytes:
                bad = False
                self.times -= 1
                if self.kind is Kind.DRIP:
                    await _drip(data, writer)
                data = _flipped(data)
            writer.write(data)
            await writer.drain()
        upwards.cancel()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@contextmanager
def proxy_to(upstream: str) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.stop()


@contextmanager
def bad_wire_to(upstream: str, kind: Kind, times: int, after_bytes: int) -> Iterator[Wire]:
    wire = Wire(upstream, kind, times, after_bytes)
    try:
        yield wire
    finally:
        wire.stop()
