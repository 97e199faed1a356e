"""Whether processes are at work. Those that measure say so by every forward pass, and the run looks; of all else, such
as loading, they do the same, and the run looks at the last ones once the first is done.

A forward pass is a token of a batch of answers: however long these are, their limit is never met by a process that
computes. In the training, where one waits for another, `job.host.watchdog` looks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from job.errors import TransientError
from job.host.time_limits import limit

ALIVE = ".alive"  # beside the log, touched by the process
BEAT_SECONDS = 0.5
LONGEST_LOOK_SECONDS = 1.0  # more has gone by where all were frozen together, as a container can be


@contextmanager
def says_alive(model: Any, said: Path, every_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Within, each forward pass of `model` touches the file beside `said`, not more often than so."""
    file, last = said.with_suffix(ALIVE), 0.0

    def beat(*_: object) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= every_seconds:
            last = now
            file.touch()

    # With an adapter losses come from the whole, and generated tokens from the model within
    parts = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    with ExitStack() as hooks:
        for part in parts:
            hooks.callback(part.register_forward_hook(beat).remove)
        yield


class Alive:
    """Looks at the processes whose logs are `said`, from now on, and often."""

    def __init__(self, said: Sequence[Path], says_alive: bool) -> None:
        """Without `says_alive` nothing is heard of them before they are done."""
        self._missing = "no forward pass" if says_alive else "not done as another is, and silent"
        self._files = [path.with_suffix(ALIVE) for path in said]
        self._limit_seconds = limit("TUNEJOB_STALL_MINUTES") * 60
        self._touched, self._looked = list(map(_touched, self._files)), [time.monotonic()] * len(said)
        self._silent_seconds = [0.0] * len(said)

    def require(self, number: int, what: str) -> None:
        """Raises `TransientError` where the process, which is `what` and has something left to do, stands still."""
        touched, now = _touched(self._files[number]), time.monotonic()
        waited, self._looked[number] = min(now - self._looked[number], LONGEST_LOOK_SECONDS), now
        self._silent_seconds[number] += waited
        if touched != self._touched[number]:
            self._touched[number], self._silent_seconds[number] = touched, 0.0
        if self._silent_seconds[number] > self._limit_seconds:
            raise TransientError(
                f"{what}: it stands still",
                found=f"{self._missing} for {self._silent_seconds[number]:.0f} seconds",
                expected=f"at most {self._limit_seconds:.0f} (TUNEJOB_STALL_MINUTES)",
                hint="Run the same spec again: what was trained by then is stored",
            )


def _touched(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
