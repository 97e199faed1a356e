"""Who follows a run beside the reader of its log: monitoring while it runs, a receiver of a message at its end."""

from __future__ import annotations

import time
from typing import Any, Self

from job.errors import Interrupted, JobError
from job.errors.facts import failure_facts
from job.host.log import Log
from job.host.notify import Notifier
from job.host.pulse import Pulse
from job.host.signals import cause


class Watched:
    """For as long as the run lasts, and at its end: as it should be, or the failure that the block raises."""

    def __init__(self, log: Log) -> None:
        self._log, self._begun = log, time.monotonic()
        self._notifier = Notifier()
        self._pulse: Pulse | None = None
        self._noted: set[str] = set()
        self._known: dict[str, Any] = {"name": None, "run_id": None, "output": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._end(error if error is None or isinstance(error, JobError) else cause(error))

    def begin(self, run_id: str, name: str, output: str) -> None:
        """From here on it is watched."""
        self._known = {"name": name, "run_id": run_id, "output": output}
        self._pulse = Pulse(run_id, name)
        self._note_faults()
        self._log.listeners.append(self._pulse)

    def _note_faults(self) -> None:
        """Says what monitoring does not get, once."""
        for variable, fault in (self._pulse.faults if self._pulse else {}).items():
            if variable not in self._noted:
                self._log("note", text=f"{variable} gets nothing: {fault}")
                self._noted.add(variable)

    def _end(self, failure: JobError | None) -> None:
        exit_code = failure.exit_code if failure else 0
        if self._pulse:
            self._pulse.end(exit_code)
            self._note_faults()
        if isinstance(failure, Interrupted):  # no end: who was stopped goes on
            return
        if self._pulse and self._pulse.helps:
            return
        figures: dict[str, dict[str, float]] = {}
        for (model, metric), value in self._pulse.state.figures.items() if self._pulse else ():
            figures.setdefault(model, {})[metric] = value
        seconds = round(time.monotonic() - self._begun, 3)
        why = failure and failure_facts(self._log.clean(failure), failure.stage or "run", self._known["run_id"] or "")
        end = {"exit_code": exit_code, "seconds": seconds, "figures": figures, "failure": why}
        self._notifier.tell(self._known | end, self._log)
