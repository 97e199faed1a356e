"""Which rows are used, and in which order: slices, limits, weights, held-out rows, shuffling. All seeded.

`RandomState` is used on purpose: its stream is frozen by NumPy for all versions, so that a rerun years later draws
the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from job.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from job.spec import HeldOutSpec, SourceSpec

    Index = NDArray[np.int64]

SLICE = re.compile(r"\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]$")
# What is held out where the spec does not say: this part of the rows, within bounds, where there are enough of them.
FRACTION, FEWEST, MOST, FROM_ROWS = 0.02, 8, 200, 100
# Separate random streams, so that changing one leaves the others as they were.
HELD_OUT, WEIGHT, SHUFFLE, SAMPLE, MIXED = 1, 2, 3, 4, 6


def row_range(source: SourceSpec, rows: int) -> range:
    """The rows of a source of `rows` rows that its `split` slice and `limit` leave, as Python slices count.

    Per cent are rounded to the nearest row, as in the `datasets` library.
    """
    found = SLICE.search(source.split)
    start, stop = (_boundary(found[end], rows) for end in ("start", "stop")) if found else (None, None)
    selected = range(rows)[start:stop]
    return selected[: source.limit]


def _boundary(text: str | None, rows: int) -> int | None:
    if text is None:
        return None
    return round(int(text[:-1]) * rows / 100) if text.endswith("%") else int(text)


def choose_held_out(spec: HeldOutSpec, rows: Index, seed: int) -> tuple[Index, Index]:
    """Row numbers split into (train, held-out), each in the order of `rows`.

    Raises `InputError` if nothing would be left to train on.
    """
    import numpy as np

    count = spec.rows if spec.rows is not None else max(1, round((spec.fraction or 0.0) * len(rows)))
    if count >= len(rows):
        key = "rows" if spec.rows is not None else "fraction"
        raise InputError(
            "no rows are left to train on",
            where=f"/data/held_out/{key}",
            found=f"{count} held out",
            expected=f"fewer than {len(rows)}",
        )
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[_random(seed, HELD_OUT).permutation(len(rows))[:count]] = True
    return rows[~chosen], rows[chosen]


def default_held_out(different_rows: int) -> int:
    """How many of so many different rows are held out where the spec does not say."""
    return min(MOST, max(FEWEST, round(FRACTION * different_rows))) if different_rows >= FROM_ROWS else 0


def sampled(counts: Sequence[int], most: int, seed: int) -> list[frozenset[int]]:
    """At most so many rows of all sources together, each as likely as any other: places in each source, of which there
    are `counts`. At least one row of every source.
    """
    import numpy as np

    total = sum(counts)
    chosen = np.sort(_random(seed, SAMPLE).permutation(total)[:most])
    starts = np.concatenate([[0], np.cumsum(counts)])
    parts = [chosen[(chosen >= start) & (chosen < stop)] - start for start, stop in pairwise(starts)]
    return [frozenset(part.tolist()) or frozenset({0}) for part in parts]


def weighted(rows: Index, weight: float, seed: int, source: int) -> Index:
    """Each row `weight` times; the fractional part is a random choice of rows in their order."""
    import numpy as np

    whole, part = int(weight), weight - int(weight)
    count = round(part * len(rows))
    some = np.sort(_random(seed, WEIGHT + 10 * source).permutation(len(rows))[:count])
    return np.concatenate([*[rows] * whole, rows[some]])


def shuffled(rows: Index, seed: int) -> Index:
    order: Index = _random(seed, SHUFFLE).permutation(len(rows))
    return rows[order]


def mixed(sequences: int, seed: int) -> Index:
    """An order of so many sequences of two kinds, one after the other."""
    order: Index = _random(seed, MIXED).permutation(sequences)
    return order


def _random(seed: int, stream: int) -> Any:
    import numpy as np

    return np.random.RandomState([seed, stream])
