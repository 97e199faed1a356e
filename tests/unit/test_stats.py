"""The tutorials' memory figures, stages that add up, and a document that fits its schema at any moment."""

from __future__ import annotations

import mmap
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from job.errors import InputError
from job.errors.facts import failure_facts
from job.host.memory import GIB
from job.host.planned import PlannedRun, pairs
from job.host.stats import Phase, Stats, training_memory
from job.report.spoken import words
from job.spec.strict import StrictValidator, load_schema

MIB = 1 << 20


def valid(stats: Stats) -> None:
    StrictValidator(load_schema("stats")).validate(stats.document())


def test_the_document_fits_its_schema_from_the_first_moment_to_a_failure(tmp_path: Path) -> None:
    stats = Stats("0" * 16, "x", tmp_path)
    valid(stats)

    def fail() -> None:
        with stats.phase("data"):
            raise InputError("no rows")

    with pytest.raises(InputError) as caught:
        fail()
    stats.failure = failure_facts(caught.value, stats.current, stats.run_id)
    valid(stats)
    assert [phase.name for phase in stats.phases] == ["data"]
    assert stats.document()["status"] == "failed"
    assert stats.current == "data"


def test_a_phase_measures_time_memory_and_disk(tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    workdir.mkdir()
    (workdir / "before").write_bytes(b"x" * 30 * MIB)
    stats = Stats("0" * 16, "x", workdir)
    with stats.phase("fetch"):
        time.sleep(0.2)
    with stats.phase("data"):
        block = mmap.mmap(-1, 200 * MIB)  # new pages, whatever this process has left over from other tests
        block.write(b"x" * 200 * MIB)
        (workdir / "file").write_bytes(b"x" * 50 * MIB)
        (workdir / "same").hardlink_to(workdir / "file")
        (tmp_path / "of another program").write_bytes(b"x" * 20 * MIB)
        time.sleep(1.2)
        block.close()
    fetch, data = stats.phases
    assert 0.2 <= fetch.wall_seconds < 1.0
    assert data.peak_rss_bytes - fetch.peak_rss_bytes >= 150 * MIB
    assert 50 * MIB <= data.peak_disk_bytes < 51 * MIB
    assert data.peak_gpu_reserved_bytes == 0


def test_planned_and_actual_stand_side_by_side_and_what_is_far_apart_is_known(tmp_path: Path) -> None:
    """By more than a fifth, and trifles do not count."""
    planned = PlannedRun(
        "h200", 10 * GIB, 12 * GIB, 100 * MIB, {"load": 10.0, "train": 100.0, "evaluate": 8.0, "gguf": 30.0}
    )
    stats = Stats("0" * 16, "x", tmp_path, device={"kind": "cuda"}, memory=training_memory(GIB, 11 * GIB, 150 * GIB))
    stats.phases = [Phase("load", 11.9), Phase("train", 121.0, peak_rss_bytes=9 * GIB), Phase("evaluate", 2.0)]
    assert stats.document()["planned"] == {}, "before the rows are read"
    stats.planned = asdict(planned)
    valid(stats)
    document = stats.document()["planned"]
    assert document["gpu"] == "h200"
    assert document["gpu_peak_bytes"] == {"planned": 10 * GIB, "actual": 11 * GIB}
    assert document["stage_seconds"]["train"] == {"planned": 100.0, "actual": 121.0}
    assert document["stage_seconds"]["gguf"] == {"planned": 30.0, "actual": None}
    apart = [pair for pair in pairs(document) if pair.differs]
    assert [pair.what for pair in apart] == ["host memory, to have at hand", "time of train"]
    assert words("differs", asdict(apart[0])) == "host memory, to have at hand: 12.9 GB planned, 9.66 GB taken"
    assert words("differs", asdict(apart[1])) == "time of train: 100 s planned, 121 s taken"


def test_a_cost_is_hours_times_the_users_price(tmp_path: Path) -> None:
    assert Stats("0" * 16, "x", tmp_path).document()["cost"] is None
    stats = Stats("0" * 16, "x", tmp_path, price_per_hour=2.5)
    stats._started -= 7200
    assert stats.document()["cost"] == {
        "price_per_hour": 2.5,
        "hours": pytest.approx(2, abs=0.01),
        "cost": pytest.approx(5, abs=0.02),
    }
    valid(stats)


def test_memory_figures_are_those_of_the_tutorials() -> None:
    figures = training_memory(4_000, 6_000, 20_000)
    assert figures["peak_gpu_reserved_for_training_bytes"] == 2_000
    assert figures["peak_gpu_reserved_percent"] == 30.0
    assert figures["peak_gpu_reserved_for_training_percent"] == 10.0
    assert training_memory(0, 0, 0)["peak_gpu_reserved_percent"] == 0.0
