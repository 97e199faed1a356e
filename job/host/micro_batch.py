"""Less at once where memory runs out, and the same result: smaller micro-batches, halves of an evaluated batch."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, and how many passes make one optimiser step."""

    rows: int
    accumulation_steps: int

    def smaller(self) -> MicroBatch | None:
        """The largest smaller one with the same rows a step, so that every step sees the same; None for one row."""
        if self.rows == 1:
            return None
        rows = next(size for size in range(self.rows // 2, 0, -1) if self.rows % size == 0)
        return MicroBatch(rows, self.accumulation_steps * (self.rows // rows))


def in_halves(batch: list[Item], compute: Callable[[list[Item]], list[Found]]) -> list[Found]:
    """`compute(batch)`, in 2, 4 … parts where the GPU lacks memory for one. Raises what a single item raises."""
    import torch

    try:
        return compute(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    free_memory()
    middle = len(batch) // 2
    return in_halves(batch[:middle], compute) + in_halves(batch[middle:], compute)


def free_memory() -> None:
    """Gives back what nothing refers to any more, on the host and on the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
