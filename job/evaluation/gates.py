"""What the trained model, and everything that is delivered of it, must reach before it is published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from job.errors import Fault, GateError
from job.evaluation.metrics import METRICS
from job.spec import GateSpec


def check_gates(gates: Sequence[GateSpec], name: str, base: Mapping[str, float], found: Mapping[str, float]) -> None:
    """Compares the figures, by metric, of the base and of `name`: the trained model ("trained") or an artefact. Figures
    of pairs are of the trained model alone.

    Raises `GateError` naming every bound that is to hold for it and does not, or cannot be computed.
    """
    faults = [
        fault
        for index, gate in enumerate(gates)
        if gate.holds_for(name) and (name == "trained" or METRICS[gate.metric].of_margin is None)
        for fault in _broken(gate, f"/evaluation/gates/{index}", name, base, found)
    ]
    if faults:
        raise GateError(*faults)


def _broken(
    gate: GateSpec, pointer: str, name: str, base: Mapping[str, float], figures: Mapping[str, float]
) -> Iterator[Fault]:
    metric = METRICS[gate.metric]
    found, before = figures.get(gate.metric), base.get(gate.metric)
    gain = None if found is None or before is None else metric.gain(before, found)
    rise = None if gain is None else -gain
    bounds = [
        ("at_least", gate.at_least, found, "at least"),
        ("at_most", gate.at_most, found, "at most"),
        ("gain_at_least", gate.gain_at_least, gain, "better than the base by at least"),
        ("rise_at_most", gate.rise_at_most, rise, "above the base by at most"),
    ]
    for bound, limit, value, word in bounds:
        if limit is None:
            continue
        holds = value is not None and (value <= limit if bound.endswith("at_most") else value >= limit)
        if not holds:  # also where the figure is not a number
            shown = "not measured" if value is None else f"{value:.6g}"
            yield Fault(
                f"{name} does not pass this gate on {gate.metric}",
                where=f"{pointer}/{bound}",
                found=shown,
                expected=f"{word} {limit:g}",
            )
