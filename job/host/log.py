"""What the job says: JSON lines, or a live display on a terminal; never a secret."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any, cast

from job.errors import Fault, JobError
from job.host.credentials import MASK
from job.host.redact import Redactor
from job.host.streams import LOST, LastingStream, harmless

LIVE = {"loss": "loss", "tokens_per_second": "tokens/s"}  # what a live bar has room for


class Secret:
    """A value that cannot be printed by accident: only `reveal()` gives it."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)


class Log:
    """Events of one run. On a pipe each is a JSON line on stdout; on a terminal a short readable one."""

    def __init__(self, stream: IO[str] | None = None, json_lines: bool | None = None) -> None:
        self.redact = Redactor()
        self.stream = stream or sys.stdout
        self.json_lines = (not self.stream.isatty()) if json_lines is None else json_lines
        self._start = time.monotonic()

    def __call__(self, event: str, **fields: Any) -> None:
        if self.json_lines:
            record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **fields}
            line = json.dumps(record, ensure_ascii=False, default=str)
        else:
            facts = "  ".join(f"{key}={_short(value)}" for key, value in fields.items())
            line = f"{time.monotonic() - self._start:7.1f}s  {event:<10} {facts}"
        self.say(line)

    def say(self, line: str) -> None:
        """One line, secrets masked and nothing in it that a terminal obeys; lost if it cannot be written."""
        # A vendor's message may hold half a character
        whole = harmless(self.redact(line)).encode("utf-8", "backslashreplace").decode()
        with suppress(*LOST):
            print(whole, file=self.stream, flush=True)

    def clean(self, error: JobError) -> JobError:
        """`error` with every secret masked: before it is shortened, or the first part of one would be left."""
        error.faults = tuple(
            Fault(**{name: self.redact(text) for name, text in asdict(fault).items()}) for fault in error.faults
        )
        return error

    def bar(self, stage: str, total: int | None = None, every_seconds: float = 5.0) -> Bar:
        """A progress display for `stage`; use as a context manager."""
        return Bar(self, stage, total, every_seconds)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Bar:
    """Progress of one long stage: a live bar on a terminal, an event now and then (or each update) elsewhere."""

    def __init__(self, log: Log, stage: str, total: int | None, every_seconds: float) -> None:
        self.total = total
        self._log = log
        self._stage = stage
        self._every_seconds = every_seconds
        self._last = 0.0
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        if not self._log.json_lines:
            self._live = _live_bar(self._log.stream)
            self._task = self._live.add_task(self._stage, total=self.total, detail="")
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: int, **fields: Any) -> None:
        if self._live:
            detail = "  ".join(f"{_short(fields[key])} {unit}" for key, unit in LIVE.items() if key in fields)
            self._live.update(self._task, completed=done, total=self.total, detail=detail)
        elif time.monotonic() - self._last >= self._every_seconds or done == self.total:
            self._last = time.monotonic()
            self._log(self._stage, done=done, total=self.total, **fields)

    def update_total(self, done: int, total: int | None) -> None:
        """For work that learns only on the way how much there is."""
        self.total = total
        self.update(done)


def _live_bar(stream: IO[str]) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<8}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    console = Console(file=cast("IO[str]", LastingStream(stream)))
    return Progress(*columns, console=console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False)
