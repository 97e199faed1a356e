"""What the job says: JSON lines, or lines for people with bars on a terminal; never a secret."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import IO, Any

from job.errors import Fault, JobError
from job.host.credentials import MASK
from job.host.redact import Redactor
from job.host.screen import Screen, clock, short
from job.host.streams import LOST, harmless

Words = Callable[[str, Mapping[str, Any]], str | None]  # an event for people; None: nothing that they need
BEGIN, PROGRESS = "begin", "progress"  # for people only: a stage begins; how far something long has come
# Where no bar moves, a line of progress is written after so much of the whole, but not sooner, and not much later.
SAID_SHARE, SOONEST_SECONDS, LATEST_SECONDS = 0.05, 10.0, 60.0


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


def plain(event: str, fields: Mapping[str, Any]) -> str:
    """Any event for people, in the names that its JSON has."""
    return ", ".join(f"{key.replace('_', ' ')} {short(value)}" for key, value in fields.items())


class Log:
    """Events of one run. On a pipe each is a JSON line on stdout; on a terminal, or where it is asked for, a line for
    people, in `words`.

    `aside`: where output that is not an event goes, beside JSON lines.
    """

    def __init__(
        self, stream: IO[str] | None = None, json_lines: bool | None = None, words: Words = plain,
        aside: IO[str] | None = None,
    ) -> None:  # fmt: skip
        self.redact = Redactor()
        self.stream = stream or sys.stdout
        self.json_lines = (not self.stream.isatty()) if json_lines is None else json_lines
        self.words = words
        self.aside = aside or sys.stderr
        self.listeners: list[Callable[[str, Mapping[str, Any]], None]] = []  # hear what is said, and how far things are
        self._start = time.monotonic()
        self._screen: Screen | None = None
        self._label = ""  # of the last line

    def __call__(self, event: str, **fields: Any) -> None:
        self.heard(event, fields)
        if self.json_lines:
            record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **fields}
            self.say(json.dumps(record, ensure_ascii=False, default=str))
        elif (text := self.words(event, fields)) is not None:
            self._tell(str(fields.get("stage", event)), text)

    def heard(self, event: str, fields: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener(event, fields)

    def tell(self, label: str, event: str, fields: Mapping[str, Any]) -> None:
        """What JSON lines say otherwise or not at all, under `label`."""
        self._tell(label, self.words(event, fields) or "")

    def _tell(self, label: str, text: str) -> None:
        """A line with its time since the start. A terminal shows a label once in a row, a file in each line."""
        shown, self._label = ("" if label == self._label and self._at_terminal() else label), label
        self.say(f"{clock(time.monotonic() - self._start):>7}  {shown:<11}{text}".rstrip())

    def say(self, line: str) -> None:
        """One line, secrets masked and nothing in it that a terminal obeys; lost if it cannot be written."""
        # A vendor's message may hold half a character
        whole = harmless(self.redact(line)).encode("utf-8", "backslashreplace").decode()
        with suppress(*LOST):
            if self._screen:
                self._screen.line(whole)
            else:
                print(whole, file=self.stream, flush=True)

    def explain(self, text: str) -> None:
        """What only helps where nobody knows what happened: a traceback, the last words of a process."""
        with suppress(*LOST):
            if self.json_lines:
                print(harmless(self.redact(text)), file=self.aside, flush=True)
            else:
                self.say(text)

    def clean(self, error: JobError) -> JobError:
        """`error` with every secret masked: before it is shortened, or the first part of one would be left."""
        error.faults = tuple(
            Fault(**{name: self.redact(text) for name, text in asdict(fault).items()}) for fault in error.faults
        )
        return error

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Says to people that a stage begins, with a bar for as long as it lasts. JSON lines have what it found."""
        self.heard(BEGIN, {"stage": name})
        if not self.json_lines:
            self.tell(name, BEGIN, {"stage": name})
        with self.live(name):
            yield

    def bar(self, stage: str, total: int | None = None, every_seconds: float = 5.0) -> Bar:
        """A progress display for `stage`; use as a context manager."""
        return Bar(self, stage, total, every_seconds)

    def live(self, label: str, total: int | None = None) -> Bar:
        """The same for people alone: JSON lines say nothing of it."""
        return Bar(self, label, total, None)

    def screen(self) -> Screen | None:
        """The terminal that bars are shown on; None where there is none."""
        if self._screen is None and not self.json_lines and self._at_terminal():
            self._screen = Screen(self.stream)
        return self._screen

    def _at_terminal(self) -> bool:
        with suppress(*LOST):
            return self.stream.isatty()
        return False

    def end_bars(self) -> None:
        """For last words: nothing moves any more below them."""
        if self._screen:
            self._screen.end_all()


class Bar:
    """Progress of something long: a bar on a terminal; elsewhere JSON has an event now and then (or each update, or
    none), and people have a line now and then, also of the first and the last update if that has figures.
    """

    def __init__(self, log: Log, label: str, total: int | None, every_seconds: float | None) -> None:
        self.total = total
        self._log = log
        self._label = label
        self._every_seconds = every_seconds
        self._last = 0.0
        self._screen: Screen | None = None
        self._begun = False
        self._said, self._said_at = 0, time.monotonic()

    def __enter__(self) -> Bar:
        return self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> Bar:
        self._screen = self._log.screen()
        if self._screen:
            self._begun = self._screen.begin(self._label)
        return self

    def end(self) -> None:
        if self._screen and self._begun:
            self._screen.end(self._label)

    def update(self, done: int, **fields: Any) -> None:
        self._log.heard(self._label, {"done": done, "total": self.total, **fields})
        if self._screen:
            self._screen.update(self._label, done, self.total, fields)
        elif not self._log.json_lines:
            if self._is_due(done, bool(fields)):
                self._said, self._said_at = done, time.monotonic()
                self._log.tell(self._label, PROGRESS, {"done": done, "total": self.total, **fields})
        elif self._every_seconds is not None and (
            time.monotonic() - self._last >= self._every_seconds or done == self.total
        ):
            self._last = time.monotonic()
            self._log(self._label, done=done, total=self.total, **fields)

    def _is_due(self, done: int, figures: bool) -> bool:
        waited = time.monotonic() - self._said_at
        if waited >= LATEST_SECONDS or (figures and (self._said == 0 or done == self.total)):
            return True
        return waited >= SOONEST_SECONDS and done - self._said >= SAID_SHARE * (self.total or 0)

    def update_total(self, done: int, total: int | None) -> None:
        """For work that learns only on the way how much there is."""
        self.total = total
        self.update(done)
