"""The job's side of its workers: starts them, gives them rows in order, bounds their time, names what broke them.

Time is the worker's own on a processor: a container that was frozen, or a machine that does much else, is not a
reason to call a template hostile.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from job.data.worker import wire
from job.errors import CapacityError, InputError, JobError, PolicyError
from job.host.fork_server import PACKAGE_ROOT
from job.host.records import build

START_SECONDS = 120.0  # of the processor: a large tokenizer
ANSWER_SECONDS = 8.0  # for a batch of rows, whatever its templates do
SECONDS_PER_MIB = 30.0  # and for tokenising
LOOK_SECONDS = 0.25  # between two looks at how much it has taken
IDLE_LOOKS = 480  # without any work in between; looks instead of seconds, for a frozen job takes none
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Worker:
    """One worker process. After an error it cannot be used any more."""

    def __init__(self, tokenizer_file: Path, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._answer_seconds = answer_seconds
        environment = {"PYTHONPATH": str(PACKAGE_ROOT), "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}
        self._process = subprocess.Popen(  # noqa: S603 - our own module, and no shell
            [sys.executable, "-P", "-m", "job.data.worker", str(tokenizer_file), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True, cwd="/",
        )  # fmt: skip
        self._requests = cast(IO[bytes], self._process.stdin)
        self._replies = cast(IO[bytes], self._process.stdout)
        self._stage = ""
        self._ready = False
        self._most_seconds = START_SECONDS

    def wait_until_ready(self) -> None:
        """Until its tokenizer is loaded."""
        if not self._ready:
            self._receive()
            self._ready = True

    def ask(self, request: bytes) -> tuple[wire.Reply, bytes]:
        """The reply. Raises `PolicyError` for a template that needs too long, too much, or what is forbidden."""
        self.wait_until_ready()
        self._stage = ""
        self._most_seconds = self._seconds() + self._answer_seconds + SECONDS_PER_MIB * len(request) / (1 << 20)
        try:
            self._requests.write(wire.pack(request))
            self._requests.flush()
        except BrokenPipeError:
            raise self._death() from None
        reply, body = self._receive()
        if reply.refused is not None:
            raise PolicyError("the template is refused", where=self._stage, found=reply.refused)
        return reply, body

    @property
    def stage(self) -> str:
        return self._stage

    def _receive(self) -> tuple[wire.Reply, bytes]:
        while True:
            message = wire.unpack(self._read)
            if message is None:
                raise self._death()
            reply = build(wire.Reply, message[0])
            if reply.stage is None:
                return reply, message[1]
            self._stage = reply.stage

    def _read(self, size: int) -> bytes:
        """Exactly `size` bytes; fewer at the end of the stream. Raises where the worker takes more than its time."""
        pipe, parts = self._replies.fileno(), bytearray()
        before, idle_looks = 0.0, 0
        while len(parts) < size:
            if select.select([pipe], [], [], LOOK_SECONDS)[0]:
                part = os.read(pipe, min(size - len(parts), 1 << 20))
                if not part:
                    break
                parts += part
                continue
            seconds = self._seconds()
            idle_looks = idle_looks + 1 if seconds == before else 0
            before = seconds
            if seconds > self._most_seconds or idle_looks > IDLE_LOOKS:
                self._process.kill()
                raise self._too_slow()
        return bytes(parts)

    def _seconds(self) -> float:
        """Processor seconds that the worker has taken so far; none once it has ended."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def _too_slow(self) -> JobError:
        if self._stage:
            found = f"no end after {self._answer_seconds:.0f} seconds of the processor"
            return PolicyError("the template is refused", where=self._stage, found=found)
        return JobError("a data worker does not answer")

    def _death(self) -> JobError:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return CapacityError(
                "a data worker was killed, as happens when memory runs out", hint="Give the job more memory"
            )
        if code < 0 and self._stage:
            return PolicyError(
                "the template is refused", where=self._stage, found=f"its process ended by {signal.Signals(-code).name}"
            )
        if code < 0:
            return InputError(
                "a row needs more memory than a data worker gets", where="/data/train", found=signal.Signals(-code).name
            )
        return JobError(f"a data worker ended with code {code}; its error is on stderr")

    def close(self) -> None:
        """Ends the process at once; it holds nothing worth saving."""
        self._process.kill()
        self._process.wait()
        self._replies.close()
        with contextlib.suppress(BrokenPipeError):  # a request that the dead process never read
            self._requests.close()


class Pool:
    """Up to `workers` worker processes, each started when it is first needed.

    The thread that asks starts them and must outlive them: the kernel ends a worker with the thread that started it.
    """

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

    def ask(self, request: wire.Request) -> wire.Reply:
        """One request's reply. Raises `InputError` where a template fails."""
        self._hire()
        return self._ask(wire.dump(request))[0]

    def map(self, requests: Iterable[tuple[Any, bytes]]) -> Generator[tuple[Any, wire.Reply, bytes]]:
        """Replies in the order of the requests, with what was given beside each; requests are drawn when needed."""
        waiting: deque[tuple[Any, Future[tuple[wire.Reply, bytes]]]] = deque()
        with ThreadPoolExecutor(self._workers) as threads:
            try:
                for label, request in requests:
                    self._hire()
                    waiting.append((label, threads.submit(self._ask, request)))
                    if len(waiting) > 2 * self._workers:
                        yield self._next(waiting)
                while waiting:
                    yield self._next(waiting)
            finally:
                for _, future in waiting:
                    future.cancel()

    @staticmethod
    def _next(waiting: deque[tuple[Any, Future[tuple[wire.Reply, bytes]]]]) -> tuple[Any, wire.Reply, bytes]:
        label, future = waiting.popleft()
        return label, *future.result()

    def _hire(self) -> None:
        """One worker more, if none is idle and there may be more."""
        if self._idle.empty() and len(self._all) < self._workers:
            worker = Worker(self._tokenizer_file)
            self._all.append(worker)
            self._idle.put(worker)

    def _ask(self, request: bytes) -> tuple[wire.Reply, bytes]:
        worker = self._idle.get()
        try:
            reply, body = worker.ask(request)
            stage = worker.stage
        finally:
            self._idle.put(worker)  # a dead one, too: who waits for it fails at once, and after this one
        if reply.failed is not None:
            raise InputError("the template cannot be used", where=stage, found=reply.failed)
        return reply, body
