"""The trackers of one run; what one of them cannot take ends nothing: the figures are in the report as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from job.errors import Interrupted
from job.host.log import Log
from job.spec import JobSpec
from job.tracking import TRACKERS
from job.tracking.record import Begun, Session


def begun(spec: JobSpec, folder: Path) -> Begun:
    """What trackers get of a run at first; `folder`: that of its report."""
    return Begun(spec.run_id, spec.name, spec.resolved, folder)


class Followed:
    """Those of `names` that could be begun with."""

    def __init__(self, names: Sequence[str], begun: Begun, log: Log) -> None:
        self._log = log
        self._sessions: dict[str, Session] = {}
        for name in names:
            if begin := TRACKERS[name].begin:
                self._attempt(name, self._begin, name, begin, replace(begun, folder=begun.folder / name))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, session in list(self._sessions.items()):
            self._attempt(name, session.log, step, figures)

    def end(self, figures: Mapping[str, float], address: str, files: Sequence[Path], failure: str) -> None:
        for name, session in list(self._sessions.items()):
            self._attempt(name, session.end, figures, address, files, failure)

    def close(self) -> None:
        for name, session in list(self._sessions.items()):
            self._attempt(name, session.close)

    def _begin(self, name: str, begin: Callable[[Begun], Session], begun: Begun) -> None:
        self._sessions[name] = begin(begun)

    def _attempt(self, name: str, action: Callable[..., object], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Interrupted:
            raise  # a stop ends the run, not the tracker alone
        except Exception as error:  # whatever its library raises
            self._sessions.pop(name, None)
            reason = f"{type(error).__name__}: {error}"
            self._log("tracking", tracker=name, note="it gets no more of this run", reason=reason)
