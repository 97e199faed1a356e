"""The tutorials' memory figures, stages that add up, and a document that fits its schema at any moment."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import pytest

from job.errors import InputError
from job.errors.facts import failure_facts
from job.host.stats import Stats, training_memory
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
    stats = Stats("0" * 16, "x", tmp_path)
    with stats.phase("fetch"):
        time.sleep(0.2)
    with stats.phase("data"):
        block = mmap.mmap(-1, 200 * MIB)  # new pages, whatever this process has left over from other tests
        block.write(b"x" * 200 * MIB)
        (tmp_path / "file").write_bytes(b"x" * 50 * MIB)
        time.sleep(1.2)
        block.close()
    fetch, data = stats.phases
    assert 0.2 <= fetch.wall_seconds < 1.0
    assert data.peak_rss_bytes - fetch.peak_rss_bytes >= 150 * MIB
    assert data.peak_disk_bytes >= 45 * MIB
    assert data.peak_gpu_reserved_bytes == 0


def test_memory_figures_are_those_of_the_tutorials() -> None:
    figures = training_memory(4_000, 6_000, 20_000)
    assert figures["peak_gpu_reserved_for_training_bytes"] == 2_000
    assert figures["peak_gpu_reserved_percent"] == 30.0
    assert figures["peak_gpu_reserved_for_training_percent"] == 10.0
    assert training_memory(0, 0, 0)["peak_gpu_reserved_percent"] == 0.0
