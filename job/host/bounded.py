"""A bound on what somebody else's pattern may take of the processor."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from job.errors import PolicyError


@contextmanager
def processor_seconds(most: float, pointer: str) -> Iterator[None]:
    """Within, this process may take `most` seconds of the processor; in its main thread. The interpreter looks for
    signals between its own steps, and its regular expressions look for them as they search.

    Raises `PolicyError` about the place `pointer` of the spec.
    """

    def expired(*_: Any) -> NoReturn:
        found = f"no end after {most:g} seconds of the processor, on one answer"
        raise PolicyError(
            "this takes too long", where=pointer, found=found, hint="Nested repetitions are the usual reason"
        )

    before = signal.signal(signal.SIGVTALRM, expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
