"""How a followed job ended: what its log and its pods say, as an exit code and as Markdown for a CI's job summary."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from job.errors import TREE, Interrupted, JobError
from job.follow.spoken import spoken
from job.host.log import Log
from job.ledger.evidence import RUN_ID, require_result
from job.report.markdown import figure, table
from job.store import open_store

REPORT = "report/summary.md"
FACTS = ("message", "pointer", "found", "expected", "hint")
DONE = ("published", "done")  # the two events that a run says only once its manifest is there
# What may follow an end: what a run says as it leaves, and what other commands say.
AFTER_THE_END = ("lease", "notified", "leftovers", "note", "termination", "summary", "ended", "verified", "valid")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
# What rented machines, engines and journals put before a line: names in brackets or before a bar, times, colours. After
# any other text it is quoted, not said. What has matched is not tried in another way: a line may be all of times.
BEFORE = re.compile(
    r"(?:\s|\ufeff|\x1b\[[0-9;]*m|\([^()]{1,200}\)|\[[^][]{1,200}\]|[\w./-]{1,200} *\|"
    r"|\d{4}-\d\d-\d\d[T ][\d:.,]++\S{0,6}(?=\s)|[A-Z][a-z]{2} +\d+ [\d:]+ \S{1,200} \S{1,200}\[\d+\]:)*+"
)
CODES = {kind.__name__: kind.exit_code for kind in TREE}
UNKNOWN = JobError.exit_code
SIGNAL_BASE = 128  # a shell's way to say that a process died of a signal


@dataclass
class Heard:
    """What a run's log has said so far: where results go, and how the last try ended.

    Others write into the same log, and what they write may come from somebody's data. So a line counts only in the
    form in which the run writes it, an end only if it is that of the run that began and nothing of the run follows.
    """

    output: str = ""
    run_id: str = ""
    last: Mapping[str, Any] = field(default_factory=dict)

    def hear(self, line: str) -> None:
        """One line of the log; what comes before the JSON (`BEFORE`) is passed over, as are other lines."""
        event = _event(line)
        name, run_id = event.get("event"), event.get("run_id")
        if not isinstance(name, str) or not TIME.fullmatch(_text(event.get("time"))):
            return
        known = not self.run_id or run_id == self.run_id or self.exit_code is not None  # after an end another may begin
        if name == "failed":
            if _is_failure(event) and (known or run_id == ""):
                self.last = event
        elif name in ("start", *DONE):
            if _is_run(event) and known:
                self.output, self.run_id, self.last = str(event.get("output", "")), str(run_id), event
        elif name not in AFTER_THE_END:
            self.last = {"event": name}

    @property
    def exit_code(self) -> int | None:
        """0 for done, the code of a failure, None while nothing has been said. No failure has 0."""
        if self.last.get("event") != "failed":
            return 0 if self.last.get("event") in DONE else None
        return int(self.last["exit_code"])


def _is_run(event: Mapping[str, Any]) -> bool:
    return bool(RUN_ID.fullmatch(_text(event.get("run_id")))) and isinstance(event.get("output", ""), str)


def _is_failure(event: Mapping[str, Any]) -> bool:
    """Whether it has what `schemas/failure.schema.json` requires, and the class's own exit code."""
    code, run_id = event.get("exit_code"), event.get("run_id")
    return (
        type(code) is int
        and CODES.get(_text(event.get("class"))) == code
        and isinstance(event.get("retryable"), bool)
        and all(isinstance(event.get(key), str) for key in ("stage", "message"))
        and (run_id == "" or bool(RUN_ID.fullmatch(_text(run_id))))
    )


def _event(line: str) -> dict[str, Any]:
    brace = line.find("{")
    if brace < 0 or not BEFORE.fullmatch(line[:brace]):
        return {}
    try:
        event, _ = json.JSONDecoder().raw_decode(line, brace)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class Attempt:
    """One pod, or the whole of a log. `exit_code` is None where nobody knows it: evicted, deleted, never started."""

    name: str
    exit_code: int | None
    reason: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The end of a job: the code to exit with, why, and each try. Not `final`: only the waiting has ended."""

    name: str
    exit_code: int
    reason: str
    attempts: Sequence[Attempt]
    heard: Heard
    final: bool = True

    def markdown(self) -> str:
        """The summary; a report that cannot be read from here is named instead."""
        report = _report(self.heard.output) if self.final else ()
        return "\n".join([*self._head(), *self._failure(), *self._tries(), *report, ""])

    def _head(self) -> Iterator[str]:
        ended = "done" if self.exit_code == 0 else f"failed with exit code {self.exit_code}"
        yield f"## {_plain(self.name)}: {ended if self.final else f'the waiting ended with exit code {self.exit_code}'}"
        yield ""
        yield f"{_plain(self.reason)}."
        if self.heard.output:
            yield f"Output {_plain(self.heard.output)}, run {_plain(self.heard.run_id)}."
        yield ""

    def _failure(self) -> Iterator[str]:
        if self.exit_code == 0:
            return
        facts = next((attempt.facts for attempt in reversed(self.attempts) if attempt.facts), self.heard.last)
        rows = [
            ("what", meaning(self.exit_code)),
            ("stage", facts.get("stage", "")),
            *((key, facts.get(key, "")) for key in FACTS),
        ]
        yield from table(("failure", ""), [(key, _plain(str(value))) for key, value in rows if value])

    def _tries(self) -> Iterator[str]:
        if len(self.attempts) < 2:
            return
        rows = [(_plain(attempt.name), figure(attempt.exit_code), _plain(attempt.reason)) for attempt in self.attempts]
        yield from table(("try", "exit code", "reason"), rows)


def outcome_of_log(lines: Iterable[str], name: str, log: Log) -> Outcome:
    """The end of a run that no cluster knows of: its log is passed on, and the run's own last word counts."""
    heard = Heard()
    try:
        for line, is_the_runs in spoken(lines):
            log.say(line)
            if is_the_runs:
                heard.hear(line)
    except Interrupted as stop:
        return Outcome(name, stop.exit_code, f"the run may go on; {stop.faults[0].message}", [], heard, final=False)
    if heard.exit_code is None:
        return Outcome(name, UNKNOWN, "the log ended before the run did", [], heard)
    return Outcome(name, heard.exit_code, f"the log ended with: {heard.last['event']}", [], heard)


def meaning(exit_code: int) -> str:
    """An exit code in words: the class of the failure, or the signal."""
    for kind in TREE:
        if kind.exit_code == exit_code:
            return f"{kind.__name__}, {'may pass with another try' if kind.retryable else 'another try meets it again'}"
    number = exit_code - SIGNAL_BASE
    if number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name}" + (
            ", mostly for lack of memory" if number == signal.SIGKILL else ""
        )
    return "not an exit code of tunejob"


def read_report(output: str) -> str:
    """The stored report of a run, Markdown. Raises `InputError` if there is none or it may not be read."""
    store = open_store(output)
    require_result(store, REPORT)
    return store.read(REPORT).decode("utf-8", "replace")


def _report(output: str) -> Iterator[str]:
    if not output:
        return
    try:
        yield read_report(output).strip()
    except JobError:
        yield f"The report, if the run came that far, is at {_plain(output)}/{REPORT}; it cannot be read from here."


def _plain(text: str) -> str:
    """`text` as text: what a run says of other people's data must not become links, pictures or table cells."""
    return re.sub(r"[\\`*_\[\]<>|!#~&@]", lambda found: f"&#{ord(found[0])};", " ".join(text.split()))
