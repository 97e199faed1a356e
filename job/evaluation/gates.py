"""What the trained model, and everything that is delivered of it, must reach before it is published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from job.errors import Fault, GateError
from job.evaluation.metrics import METRICS, metric_of
from job.evaluation.metrics.losses import HELD_OUT_LOSS
from job.evaluation.metrics.record import DIGITS
from job.evaluation.metrics.task import NAME as TASK
from job.spec import GateSpec

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Bound:
    """One bound of a gate, held against `name`: the trained model or an artefact. `value` is None where the figure was
    not measured; such a bound does not hold.
    """

    pointer: str
    metric: str
    name: str
    words: str  # before the limit
    limit: float
    value: float | None

    @property
    def holds(self) -> bool:
        if self.value is None:
            return False
        most = self.pointer.endswith("at_most")
        return self.value <= self.limit if most else self.value >= self.limit  # neither where it is not a number

    @property
    def found(self) -> str:
        return "not measured" if self.value is None else f"{self.value:.6g}"

    @property
    def expected(self) -> str:
        return f"{self.words} {self.limit:g}"


def bounds(gates: Sequence[GateSpec], name: str, base: Figures, found: Figures) -> Iterator[Bound]:
    """Each bound that is to hold for `name`, whose figures by metric are `found`; `base`: those of the base."""
    for index, gate in enumerate(gates):
        named = gate.of is not None and name in gate.of
        if gate.holds_for(name) and (name == "trained" or named or not metric_of(gate.metric).trained_alone):
            yield from _bounds(gate, f"/evaluation/gates/{index}", name, base, found)


def check_gates(gates: Sequence[GateSpec], name: str, base: Figures, found: Figures) -> None:
    """Compares the figures, by metric, of the base and of `name`: the trained model or an artefact. Some are
    of the trained model alone.

    Raises `GateError` naming every bound that is to hold for it and does not, or cannot be computed.
    """
    faults = [
        Fault(
            f"{name} does not pass this gate on {bound.metric}",
            where=bound.pointer,
            found=bound.found,
            expected=bound.expected,
        )
        for bound in bounds(gates, name, base, found)
        if not bound.holds
    ]
    if faults:
        raise GateError(*faults)


def _bounds(gate: GateSpec, pointer: str, name: str, base: Figures, figures: Figures) -> Iterator[Bound]:
    metric = metric_of(gate.metric)
    found, before = figures.get(gate.metric), base.get(gate.metric)
    gain = None if found is None or before is None else metric.gain(before, found)
    rise = None if gain is None else -gain
    asked = [
        ("at_least", gate.at_least, found, "at least"),
        ("at_most", gate.at_most, found, "at most"),
        ("gain_at_least", gate.gain_at_least, gain, "better than the base by at least"),
        ("rise_at_most", gate.rise_at_most, rise, "above the base by at most"),
    ]
    for key, limit, value, words in asked:
        if limit is not None:
            yield Bound(f"{pointer}/{key}", gate.metric, name, words, limit, value)


def judged(everywhere: Figures, here: Figures, found: Figures) -> dict[str, float]:
    """What gates are held against: the trained model's figures on all held-out rows (`everywhere`), changed by what an
    artefact's `found` ones differ from the trained model's on the compared rows (`here`).

    Where these are all rows, they are what was found.
    """
    loss, values = HELD_OUT_LOSS.name, dict[str, float]()
    for name, metric in METRICS.items():
        if metric.of_losses and loss in found:
            values[name] = metric.figure((everywhere[loss] + found[loss] - here[loss], 1.0))
        elif not metric.of_losses and name in found and name in here:
            values[name] = everywhere[name] + found[name] - here[name]
    values |= {name: value for name, value in found.items() if TASK.fullmatch(name)}  # of all documents
    return {name: round(value, DIGITS) for name, value in values.items()}
