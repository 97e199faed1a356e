"""What was planned of a run beside what it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

FAR = 0.2  # of what was planned; more is reported
TRIFLES = {"bytes": 1e9, "seconds": 10.0}  # a difference of at most this is not reported
NAMES = {
    "gpu_peak_bytes": "GPU memory in training",
    "host_peak_bytes": "host memory, to have at hand",
    "disk_peak_bytes": "scratch disk, to have at hand",
}


@dataclass(frozen=True)
class PlannedRun:
    """What the plan says of a run: `gpu`, the card of the plan that it trains on, or None; peaks in bytes, those of
    host and disk upper estimates; seconds by stage. None or absent is what the plan does not know.
    """

    gpu: str | None = None
    gpu_peak_bytes: int | None = None
    host_peak_bytes: int | None = None
    disk_peak_bytes: int | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)


def beside(planned: Mapping[str, Any], taken: Mapping[str, Any]) -> dict[str, Any]:
    """`planned` and `actual` of each figure of a `PlannedRun`; `taken` has its names, None for what is not over."""
    pairs = {name: {"planned": planned[name], "actual": taken[name]} for name in NAMES}
    stages = {
        name: {"planned": seconds, "actual": taken["stage_seconds"].get(name)}
        for name, seconds in planned["stage_seconds"].items()
    }
    return {"gpu": planned["gpu"], **pairs, "stage_seconds": stages}


@dataclass(frozen=True)
class PlannedFigure:
    """A figure that was planned and taken, in `unit`."""

    what: str
    unit: str
    planned: float
    actual: float

    @property
    def differs(self) -> bool:
        """By more than a fifth of the plan, and by enough to matter."""
        apart = abs(self.actual - self.planned) > FAR * self.planned
        return apart and max(self.actual, self.planned) > TRIFLES[self.unit]


def pairs(document: Mapping[str, Any]) -> Iterator[PlannedFigure]:
    """Of a document of `beside`, or an empty one, those of which both are known."""
    found = [(what, "bytes", document[name]) for name, what in NAMES.items() if document]
    found += [(f"time of {name}", "seconds", pair) for name, pair in document.get("stage_seconds", {}).items()]
    for what, unit, pair in found:
        if None not in pair.values():
            yield PlannedFigure(what, unit, pair["planned"], pair["actual"])
