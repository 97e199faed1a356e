"""What the job says: JSON lines, or a live display on a terminal; never a secret."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
from contextlib import suppress
from typing import IO, Any, cast
from urllib.parse import quote

from job.host.streams import LOST, LastingStream, harmless

# Whose values must never be printed or stored, whatever prints them.
SECRET_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
MASK = "[secret]"
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


def _pattern() -> re.Pattern[str] | None:
    forms: set[str] = set()
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 6:
            forms |= {value, quote(value, safe=""), base64.b64encode(value.encode()).decode().rstrip("=")}
    return re.compile("|".join(re.escape(f) for f in sorted(forms, key=len, reverse=True))) if forms else None


class Redactor:
    """Replaces every known secret in text: raw, URL-coded and base64. Built once, before variables are dropped."""

    def __init__(self) -> None:
        self._known = _pattern()

    def __call__(self, text: str) -> str:
        return self._known.sub(MASK, text) if self._known else text


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
            told = "  ".join(f"{key}={_short(value)}" for key, value in fields.items())
            line = f"{time.monotonic() - self._start:7.1f}s  {event:<10} {told}"
        self.say(line)

    def say(self, line: str) -> None:
        """One line, secrets masked and nothing in it that a terminal obeys; lost if it cannot be written."""
        # A vendor's message may hold half a character
        whole = harmless(self.redact(line)).encode("utf-8", "backslashreplace").decode()
        with suppress(*LOST):
            print(whole, file=self.stream, flush=True)

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
            self._task = self._live.add_task(self._stage, total=self.total, told="")
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: int, **fields: Any) -> None:
        if self._live:
            told = "  ".join(f"{_short(fields[key])} {unit}" for key, unit in LIVE.items() if key in fields)
            self._live.update(self._task, completed=done, total=self.total, told=told)
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
        TimeRemainingColumn(), TextColumn("{task.fields[told]}"),
    )  # fmt: skip
    console = Console(file=cast("IO[str]", LastingStream(stream)))
    return Progress(*columns, console=console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False)
