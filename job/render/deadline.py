"""When all tries of a run together are ended: after so many hours, or by what `tunejob plan` has reckoned."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.spec.strict import StrictValidator, load_schema

DAY_HOURS = 24
MOST_HOURS = 24 * 365
# A plan assumes a network and counts no answers; a second try goes on at the last checkpoint, if there is one yet.
MORE_HOURS = 1


@dataclass(frozen=True)
class Deadline:
    """In hours; `planned`: how it follows from a plan, which was that of the run `run_id`; empty without one."""

    hours: int = DAY_HOURS
    planned: str = ""
    run_id: str = ""

    def words(self) -> str:
        """For the head of a file."""
        why = self.planned or "--deadline HOURS"
        return f"Deadline: {self.hours} hours for all tries together ({why})."


def deadline_in(text: str) -> Deadline:
    """Hours, or the path of a plan. Raises `ValueError` for what is neither, and for a plan without a time."""
    if text.lstrip("-").isdecimal():
        if not 0 < int(text) <= MOST_HOURS:
            raise ValueError("is out of range")
        return Deadline(int(text))
    plan = _plan(Path(text))
    fitting = [gpu for gpu in plan["gpus"] if gpu["fits"] != "no" and gpu["seconds"] is not None]
    if not fitting:
        raise ValueError("is a plan without a GPU that fits")
    slowest = max(fitting, key=lambda gpu: gpu["seconds"])
    hours = slowest["seconds"] / 3600
    why = f"twice the {hours:.1f} that are planned for {slowest['name']}, the slowest that fits, and {MORE_HOURS}"
    if hours > MOST_HOURS / 2 - MORE_HOURS:
        raise ValueError("is a plan of a run that is too long")
    return Deadline(math.ceil(2 * hours) + MORE_HOURS, why, plan["run_id"])


def _plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_bytes(), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError):
        raise ValueError("is neither hours nor a plan") from None
    if next(StrictValidator(load_schema("plan")).iter_errors(plan), None):
        raise ValueError("is not a plan of this version")
    return dict(plan)


def _no_number(text: str) -> None:
    raise ValueError(text)
