"""Stop signals become `Interrupted` in the main thread, and an end within the budget whatever the vendors catch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from job.errors import Fault, Interrupted

STOP_BUDGET_SECONDS = 8.0
STOP_BUDGET_VARIABLE = "TUNEJOB_STOP_SECONDS"


def install(last_words: Callable[[], None]) -> None:
    """SIGTERM and SIGINT raise `Interrupted`; a second one, or the end of the budget, exits 30 at once.

    `last_words` is called before such a hard exit. Install before anything heavy is imported: Python as PID 1 ignores
    a SIGTERM nobody handles.
    """
    budget_seconds = float(os.environ.get(STOP_BUDGET_VARIABLE, STOP_BUDGET_SECONDS))
    stopping = threading.Event()

    def leave() -> None:
        last_words()
        os._exit(Interrupted.exit_code)

    def handle(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            leave()
        stopping.set()
        timer = threading.Timer(budget_seconds, leave)
        timer.daemon = True
        timer.start()
        raise Interrupted(Fault(f"stopped by {signal.Signals(number).name}", hint="Run the same spec again"))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
