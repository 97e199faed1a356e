"""Ends a training in which nothing happens any more: a hung GPU, a dead lock; nobody is awake to see it."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from job.errors import TransientError
from job.host.signals import exit_now
from job.host.time_limits import limit

LOOKS_PER_LIMIT = 20


class Watchdog:
    """While its block runs, `beat` has to be called once in the limit (TUNEJOB_STALL_MINUTES), or the process ends.

    The end is exit 20, once the stacks of all threads are on stderr: a stall may not come again on another node.
    """

    def __init__(self) -> None:
        self._limit_seconds = limit("TUNEJOB_STALL_MINUTES") * 60
        self._last_beat = time.monotonic()
        self._ended = threading.Event()
        self._paused = False

    def beat(self) -> None:
        self._last_beat = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For work within the block that is not a step and may take its time."""
        self._paused = True
        try:
            yield
        finally:
            self.beat()
            self._paused = False

    def __enter__(self) -> Watchdog:
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._limit_seconds / LOOKS_PER_LIMIT):
            silent_seconds = time.monotonic() - self._last_beat
            if not self._paused and silent_seconds > self._limit_seconds:
                self._give_up(silent_seconds)

    def _give_up(self, silent_seconds: float) -> None:
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        error = TransientError(
            "the training makes no steps",
            where="",
            found=f"no step for {silent_seconds:.0f} seconds",
            expected=f"one in {self._limit_seconds:.0f}",
            hint="The stacks of all threads are in the log; the same spec continues at the last checkpoint",
        )
        error.stage = "train"
        exit_now(error)
