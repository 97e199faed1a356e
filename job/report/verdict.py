"""What came of a run, in one sentence: is the tuned model better than its base, and was it let through?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.evaluation.metrics import METRICS, metric_of
from job.evaluation.metrics.task import NAME as TASK
from job.report.figures import BASE, TUNED, title_of
from job.report.gates import PASSED, Gate
from job.report.kept import number
from job.report.markdown import figure

Json = Mapping[str, Any]
GOOD, EVEN, BAD = "good", "even", "bad"
NAMED = 3  # measures
DIFFERENCES = "differences"  # member of the evaluation: tuned less base by metric, with bounds


@dataclass(frozen=True)
class MetricChange:
    """A figure of the base and of the tuned model. `gain`: by how much it is better; None where nothing says which
    direction is. `bounds`: of the gain, low and high, where they are known.
    """

    name: str
    base: float
    tuned: float
    gain: float | None
    bounds: tuple[float, float] | None = None

    @property
    def better(self) -> bool:
        """Whether that is shown: with bounds, where both are above 0."""
        return self.gain is not None and (self.bounds[0] if self.bounds else self.gain) > 0

    @property
    def worse(self) -> bool:
        return self.gain is not None and (self.bounds[1] if self.bounds else self.gain) < 0

    @property
    def title(self) -> str:
        return title_of(self.name).partition(", ")[0]

    @property
    def unit(self) -> str:
        return title_of(self.name).partition(", ")[2]

    def __str__(self) -> str:
        return f"{self.title.lower()} {figure(self.base)} → {figure(self.tuned)}"


def changes(evaluation: Json) -> Iterator[MetricChange]:
    """Every figure that was measured of both."""
    base, tuned = evaluation.get(BASE) or {}, evaluation.get(TUNED) or {}
    for name, value in base.items():
        before, after = number(value), number(tuned.get(name))
        if before is None or after is None:
            continue
        metric = metric_of(name) if name in METRICS or TASK.fullmatch(name) else None
        about = (evaluation.get(DIFFERENCES) or {}).get(name)
        bounds = _bounds(about, metric.lower_is_better) if metric and isinstance(about, dict) else None
        yield MetricChange(name, before, after, metric.gain(before, after) if metric else None, bounds)


def _bounds(about: Json, lower_is_better: bool) -> tuple[float, float] | None:
    """Of the gain, from those of the tuned figure less the base's."""
    interval = about.get("interval")
    if not isinstance(interval, list) or len(interval) != 2 or None in map(number, interval):
        return None
    low, high = map(float, interval)
    return (-high, -low) if lower_is_better else (low, high)


def verdict(stats: Json, gates: Sequence[Gate]) -> tuple[str, str]:
    """GOOD, EVEN or BAD, and the sentence."""
    if failure := stats.get("failure"):
        stage = f" at the stage {failure['stage']}" if failure.get("stage") else ""
        return BAD, f"The run failed{stage} with exit code {failure.get('exit_code')}: {failure.get('message')}."
    known = [change for change in changes(stats.get("evaluation") or {}) if change.gain is not None]
    better = [change for change in known if change.better]
    worse = [change for change in known if change.worse]
    held = sum(gate.result == PASSED for gate in gates)
    count = _all_of(held, "gate") if held == len(gates) else f"{held} of {len(gates)} gates"
    passed = f", and {count} held" if gates else ""
    if not known:
        return EVEN, f"It was trained and stored{passed}; no figure says whether it is better than its base."
    if better and not worse:
        return GOOD, f"The tuned model is better than its base in {_of(better, known)}{passed}: {_named(better)}."
    if worse and not better:
        return BAD, f"The tuned model is worse than its base in {_of(worse, known)}{passed}: {_named(worse)}."
    if not worse:
        measures = _all_of(len(known), "measure")
        return EVEN, f"In {measures}, no difference between the tuned model and its base is shown{passed}."
    mixed = f"better than its base in {_of(better, known)}{passed}, and worse in {_named(worse)}"
    return EVEN, f"The tuned model is {mixed}."


def _of(some: Sequence[MetricChange], known: Sequence[MetricChange]) -> str:
    if len(some) == len(known):
        return _all_of(len(known), "measure")
    return f"{len(some)} of {len(known)} measures"


def _all_of(count: int, what: str) -> str:
    return f"the one {what}" if count == 1 else f"both {what}s" if count == 2 else f"all {count} {what}s"


def _named(some: Sequence[MetricChange]) -> str:
    more = len(some) - NAMED
    return ", ".join(map(str, some[:NAMED])) + (f" and {more} more" if more > 0 else "")
