"""What the processes of a run's exports took of memory, against what was planned for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.flow.running import document, valid_stats

STEPS = {
    "reload": "reloading the adapter", "adapted": "the adapter on its original base", "merge": "merging the adapter",
    "four_bit": "4-bit weights",
    "compare": "comparison of the merged weights", "convert": "conversion to GGUF", "quantise": "gguf/tiny-Q",
}  # fmt: skip
BESIDE = ("four_bit", "compare")  # the conversion is at work meanwhile


@dataclass(frozen=True)
class Taken:
    """Bytes by step: planned for its own process, and the peak of anonymous memory that was seen."""

    planned: dict[str, int]
    seen: dict[str, int]
    children: list[dict[str, Any]]


def taken_by(folder: Path) -> Taken:
    """By the run in `folder`, which has to be started: what a forked one's processes share is more."""
    by_step = {step["name"]: step["ram_bytes"] for step in document(folder / "out" / "report" / "exports.json")["plan"]}
    planned = {name: by_step[name] - (by_step["convert"] if name in BESIDE else 0) for name in STEPS}
    children: list[dict[str, Any]] = [
        c for phase in valid_stats(folder / "out" / "stats.json")["phases"] for c in phase["children"]
    ]
    # The step has room for either base; the process knows which it was.
    planned["merge"] = max(c["planned_bytes"] for c in children if c["what"] == STEPS["merge"])
    peaks = {
        name: max(c["peak_anonymous_bytes"] for c in children if c["what"].startswith(what))
        for name, what in STEPS.items()
    }
    return Taken(planned, peaks, children)


def require_planned(taken: Taken, step: str) -> None:
    assert taken.seen[step] == pytest.approx(taken.planned[step], rel=0.1)


def require_all_planned(taken: Taken, count: int) -> None:
    """In the stats, where a reader finds it: each process has its own figure, whatever ran beside it."""
    unplanned, others = taken.children[:2], taken.children[2:]
    assert [child["what"] for child in unplanned] == [
        "the vocabulary as GGUF",
        "plan of the GGUFs",
    ]  # small, and what plans
    assert len(others) == count
    for child in others:
        print(child["what"], child["planned_bytes"] >> 20, child["peak_anonymous_bytes"] >> 20)
    for child in others:  # a peak of a short life may fall between two looks where the cores are busy
        assert child["peak_anonymous_bytes"] == pytest.approx(child["planned_bytes"], rel=0.15), child["what"]
