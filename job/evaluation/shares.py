"""Which rows a process measures where several do it together, each with the whole model, and what comes of their parts.

Batches are shared out as they are: each row has the figures, and each question the answer, that one process finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Found = TypeVar("Found")
Batch = list[int]  # numbers of rows


@dataclass(frozen=True)
class Share:
    """The part of process `number` of `count`, from 0."""

    number: int = 0
    count: int = 1

    def of(self, batches: Iterable[Batch], cost: Callable[[Batch], float]) -> list[Batch]:
        """Those of `batches` that are this process's, in their order: the dearest first, each to whom has least."""
        every = list(batches)
        if self.count == 1:
            return every
        costs, taken, own = [cost(batch) for batch in every], [0.0] * self.count, set()
        for place in sorted(range(len(every)), key=lambda place: -costs[place]):
            whose = taken.index(min(taken))
            taken[whose] += costs[place]
            if whose == self.number:
                own.add(place)
        return [batch for place, batch in enumerate(every) if place in own]


WHOLE = Share()


def together(parts: Sequence[Sequence[Found | None]]) -> list[Found | None]:
    """What any process has found of each row; None where none has."""
    return [next((each for each in found if each is not None), None) for found in zip(*parts, strict=True)]


def by_rows(count: int, size: int) -> list[Batch]:
    """`size` rows at once, in their order."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]
