"""Slices, limits, weights, held-out rows: counts and seeds."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import ReadInstruction
from hypothesis import given
from hypothesis import strategies as st

from job.data.select import choose_held_out, default_held_out, row_range, shuffled, weighted
from job.spec import HeldOutSpec, SourceSpec


def source(split: str = "train", limit: int | None = None) -> SourceSpec:
    return SourceSpec("/rows", "text", split, None, {}, None, limit, 1.0)


SLICES = [
    "",
    "[:]",
    "[:10]",
    "[10:20]",
    "[-5:]",
    "[:-5]",
    "[10%:20%]",
    "[-10%:]",
    "[:33%]",
    "[50%:]",
    "[3:-3]",
    "[:1%]",
    "[7:7]",
]


@pytest.mark.parametrize("text", SLICES)
@pytest.mark.parametrize("rows", [30, 100, 999])
def test_slices_are_those_of_the_datasets_library(text: str, rows: int) -> None:
    [expected] = ReadInstruction.from_spec(f"train{text}").to_absolute({"train": rows})
    found = row_range(source(f"train{text}"), rows)
    assert list(found) == list(range(rows))[expected.from_ : expected.to]


def test_limit_comes_after_the_slice() -> None:
    assert list(row_range(source("train[10:50]", 3), 100)) == [10, 11, 12]
    assert list(row_range(source("train[-2:]", 5), 100)) == [98, 99]


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 10), (0.001, 1), (0.255, 26)])
def test_held_out_fraction(fraction: float, count: int) -> None:
    train, held_out = choose_held_out(HeldOutSpec(fraction, None, None), np.arange(100), 3407)
    assert len(held_out) == count
    assert sorted([*train, *held_out]) == list(range(100))
    assert list(held_out) == sorted(held_out)


@pytest.mark.parametrize(("rows", "count"), [(99, 0), (100, 8), (400, 8), (450, 9), (10_000, 200), (10**6, 200)])
def test_what_is_held_out_where_nobody_says(rows: int, count: int) -> None:
    assert default_held_out(rows) == count


def test_the_seed_decides() -> None:
    def chosen(seed: int) -> list[int]:
        return choose_held_out(HeldOutSpec(None, 5, None), np.arange(1000), seed)[1].tolist()

    assert chosen(1) == chosen(1) == [332, 504, 601, 620, 745]
    assert chosen(1) != chosen(2)
    assert (
        shuffled(np.arange(1000), 1).tolist()
        == shuffled(np.arange(1000), 1).tolist()
        != shuffled(np.arange(1000), 2).tolist()
    )


@given(rows=st.integers(1, 200), weight=st.floats(0.01, 5), seed=st.integers(0, 2**32 - 1))
def test_weights_repeat_rows_evenly(rows: int, weight: float, seed: int) -> None:
    counts = np.bincount(weighted(np.arange(rows), weight, seed, 0), minlength=rows)
    assert set(counts) <= {int(weight), int(weight) + 1}
    assert counts.sum() == int(weight) * rows + round((weight - int(weight)) * rows)
