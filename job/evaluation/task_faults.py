"""What tasks of lm-eval may do and raise while they are built and measured: templates and code of many hands."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from job.errors import InputError, PolicyError

# For rows of another form; torch raises others.
UNFIT = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, StopIteration, SyntaxError, TypeError,
    ValueError,
)  # fmt: skip


@contextmanager
def fit(name: str, pointer: str) -> Iterator[None]:
    """Raises `InputError` for what a task raises within."""
    try:
        yield
    except ImportError as error:
        raise InputError("this task needs a package that is not here", where=pointer, found=f"{name}: {error}",
                         expected="a task that lm-eval alone can measure") from error  # fmt: skip
    except UNFIT as error:
        found = f"{name}: {type(error).__name__}: {error}"
        raise InputError("this task and its rows do not fit", where=pointer, found=found) from error


@contextmanager
def no_code(name: str, pointer: str) -> Iterator[None]:
    """Within, a task that fetches a metric raises `PolicyError`: such a metric is a program at the Hub."""
    import evaluate

    def refuse(path: str, *_: Any, **__: Any) -> None:
        raise runs_code(name, pointer, f"{name} fetches {path}")

    own = evaluate.load
    evaluate.load = refuse
    try:
        yield
    finally:
        evaluate.load = own


class _Heard(logging.Handler):
    def __init__(self, words: str) -> None:
        super().__init__(logging.WARNING)
        self.words, self.said = words, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in (text := record.getMessage()):
            self.said.append(text)


@contextmanager
def cut_prompts() -> Iterator[list[str]]:
    """What lm-eval says, within, of requests that it cuts at their beginning: each answer to choose from is one."""
    heard, logger = _Heard("runcati"), logging.getLogger("lm_eval")
    logger.addHandler(heard)
    try:
        yield heard.said
    finally:
        logger.removeHandler(heard)


def runs_code(name: str, pointer: str, found: str = "") -> PolicyError:
    said = "this task runs code that comes from elsewhere, or that the model writes"
    return PolicyError(said, where=pointer, found=found or name, expected="a task that runs no such code")
