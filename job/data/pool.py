"""The job's side of its workers: starts them, gives them rows in order, bounds their time, names what broke them."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from job.data.worker import wire
from job.errors import CapacityError, Fault, InputError, JobError, PolicyError

START_SECONDS = 120.0  # a large tokenizer on a busy machine
ANSWER_SECONDS = 10.0  # for a batch of rows, whatever its templates do
SECONDS_PER_MIB = 30.0  # and for tokenising
PACKAGE_ROOT = Path(__file__).parents[2]


class Worker:
    """One worker process. After an error it is of no use any more."""

    def __init__(self, tokenizer_file: Path) -> None:
        environment = {"PYTHONPATH": str(PACKAGE_ROOT), "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}
        self._process = subprocess.Popen(  # noqa: S603 - our own module, and no shell
            [sys.executable, "-P", "-m", "job.data.worker", str(tokenizer_file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True, cwd="/",
        )  # fmt: skip
        self._requests = cast(IO[bytes], self._process.stdin)
        self._replies = cast(IO[bytes], self._process.stdout)
        self._stage = ""
        self._deadline = time.monotonic() + START_SECONDS
        self._receive()

    def ask(self, request: bytes) -> tuple[wire.Header, bytes]:
        """The reply. Raises `PolicyError` for a template that needs too long, too much, or what is forbidden."""
        self._stage = ""
        self._deadline = time.monotonic() + ANSWER_SECONDS + SECONDS_PER_MIB * len(request) / (1 << 20)
        try:
            self._requests.write(wire.pack(request))
            self._requests.flush()
        except BrokenPipeError:
            raise self._death() from None
        header, body = self._receive()
        if "refused" in header:
            raise PolicyError(Fault("the template is refused", where=self._stage, found=header["refused"]))
        return header, body

    @property
    def stage(self) -> str:
        return self._stage

    def _receive(self) -> tuple[wire.Header, bytes]:
        while True:
            message = wire.unpack(self._read)
            if message is None:
                raise self._death()
            if "stage" not in message[0]:
                return message
            self._stage = message[0]["stage"]

    def _read(self, size: int) -> bytes:
        """Exactly `size` bytes before the deadline; fewer at the end of the stream."""
        pipe, parts = self._replies.fileno(), bytearray()
        while len(parts) < size:
            if not select.select([pipe], [], [], max(0.0, self._deadline - time.monotonic()))[0]:
                self._process.kill()
                raise self._too_slow()
            part = os.read(pipe, min(size - len(parts), 1 << 20))
            if not part:
                break
            parts += part
        return bytes(parts)

    def _too_slow(self) -> JobError:
        if self._stage:
            return PolicyError(
                Fault("the template is refused", where=self._stage, found=f"no end after {ANSWER_SECONDS:.0f} seconds")
            )
        return JobError(Fault("a data worker does not answer"))

    def _death(self) -> JobError:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return CapacityError(
                Fault("a data worker was killed, as happens when memory runs out", hint="Give the job more memory")
            )
        if code < 0 and self._stage:
            return PolicyError(
                Fault(
                    "the template is refused",
                    where=self._stage,
                    found=f"its process ended by {signal.Signals(-code).name}",
                )
            )
        if code < 0:
            return InputError(
                Fault(
                    "a row needs more memory than a data worker gets",
                    where="/data/train",
                    found=signal.Signals(-code).name,
                )
            )
        return JobError(Fault(f"a data worker ended with code {code}; its error is on stderr"))

    def close(self) -> None:
        """Ends the process at once; it holds nothing worth saving."""
        self._process.kill()
        self._process.wait()
        self._replies.close()
        with contextlib.suppress(BrokenPipeError):  # a request that the dead process never read
            self._requests.close()


class Pool:
    """Up to `workers` worker processes, each started when it is first needed."""

    def __init__(self, tokenizer_file: Path, workers: int) -> None:
        self._tokenizer_file = tokenizer_file
        self._workers = workers
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._all: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._all:
            worker.close()

    def ask(self, request: wire.Header) -> wire.Header:
        """One request's reply. Raises `InputError` where a template fails."""
        return self._ask(wire.dump(request))[0]

    def map(self, requests: Iterable[tuple[Any, bytes]]) -> Generator[tuple[Any, wire.Header, bytes]]:
        """Replies in the order of the requests, with what was given beside each; requests are drawn as they are
        needed.
        """
        waiting: deque[tuple[Any, Future[tuple[wire.Header, bytes]]]] = deque()
        with ThreadPoolExecutor(self._workers) as threads:
            try:
                for label, request in requests:
                    waiting.append((label, threads.submit(self._ask, request)))
                    if len(waiting) > 2 * self._workers:
                        yield self._next(waiting)
                while waiting:
                    yield self._next(waiting)
            finally:
                for _, future in waiting:
                    future.cancel()

    @staticmethod
    def _next(waiting: deque[tuple[Any, Future[tuple[wire.Header, bytes]]]]) -> tuple[Any, wire.Header, bytes]:
        label, future = waiting.popleft()
        return label, *future.result()

    def _ask(self, request: bytes) -> tuple[wire.Header, bytes]:
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = Worker(self._tokenizer_file)
            self._all.append(worker)
        header, body = worker.ask(request)
        stage = worker.stage
        self._idle.put(worker)
        if "failed" in header:
            raise InputError(Fault("the template cannot be used", where=stage, found=header["failed"]))
        return header, body
