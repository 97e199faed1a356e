"""Stop signals become `Interrupted` in the main thread, and an end within the budget whatever the vendors catch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from job.errors import Interrupted, JobError, classify
from job.host.time_limits import limit

LAST_WORDS_SECONDS = 1.0

_stopping = threading.Event()
_deferred = threading.Event()
_by = ["a signal"]  # which one it was, once it has come
_last_words: list[Callable[[JobError], object]] = []
_places: list[Callable[[JobError], object]] = []


def install(last_words: Callable[[JobError], object], keyboard: bool = True) -> None:
    """SIGTERM, and with `keyboard` SIGINT, raise `Interrupted`; a second one, or the end of the budget, exits 30 at
    once.

    `last_words` is called before such a hard exit. Install before anything heavy is imported: Python as PID 1 ignores
    a SIGTERM nobody handles.
    """
    budget_seconds = limit("TUNEJOB_STOP_SECONDS")
    _last_words.append(last_words)

    def end() -> None:
        exit_now(Interrupted("stopped by a signal"))

    def handle(number: int, frame: FrameType | None) -> None:
        if _stopping.is_set():
            end()
        _by[:] = [signal.Signals(number).name]
        _stopping.set()
        timer = threading.Timer(budget_seconds, end)
        timer.daemon = True
        with suppress(RuntimeError):  # where no thread can begin any more, the exception alone has to do
            timer.start()
        if not _deferred.is_set():
            raise stopped()

    for number in (signal.SIGTERM, signal.SIGINT) if keyboard else (signal.SIGTERM,):
        signal.signal(number, handle)


def say_only(last_words: Callable[[JobError], object]) -> None:
    """In a child: `last_words` in place of what its parent would say."""
    _places.clear()
    _last_words[:] = [last_words]


def report_where(where: Callable[[JobError], object]) -> None:
    """`where` is called before the last words: it knows in which run and stage the process is."""
    _places[:] = [where]


def defer_forever() -> None:
    """From here on the first signal raises nothing: the process says how it ended, and ends within the budget."""
    _deferred.set()


def ignore() -> None:
    """For a process whose exit code is decided: when Python shuts down it puts the system's handlers back, and a signal
    that comes then would make 143 of a success.
    """
    if _last_words:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def stopped() -> Interrupted:
    return Interrupted(f"stopped by {_by[0]}", hint="Run the same spec again")


def stop_requested() -> bool:
    """Whether a signal has come; within `deferred` somebody has to ask."""
    return _stopping.is_set()


def cause(error: BaseException) -> JobError:
    """What has ended the work: a stop that came before, whatever a library made of it, else what `error` means."""
    failure = classify(error)
    return stopped() if stop_requested() and not isinstance(failure, Interrupted) else failure


@contextmanager
def deferred() -> Iterator[None]:
    """Within, the first signal raises nothing, so that a step can end and be saved; the budget runs all the same."""
    _deferred.set()
    try:
        yield
    finally:
        _deferred.clear()
    if stop_requested():
        raise stopped()


def exit_now(error: JobError) -> None:
    """Ends the process at once, from any thread, with the error's exit code and the last words.

    They are said in a thread of their own, and not waited for long: whoever was interrupted may hold the log, on a
    full pipe.
    """
    try:
        words = threading.Thread(target=lambda: [say(error) for say in (*_places, *_last_words)], daemon=True)
        words.start()
        words.join(LAST_WORDS_SECONDS)
    finally:  # even where no thread can begin any more
        os._exit(error.exit_code)
