"""What the kernels have taken the place of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from job.host.log import Log
from job.host.micro_batch import free_memory

if TYPE_CHECKING:
    from job.training.backend import Backend

ABSENT = object()


@dataclass
class Placed:
    """What was put in whose place: (module, attribute, what was there). `kind`: "fast" or "fp8". `differences`: of the
    first of each sort of layer from what it should compute, as `check` measures them. `reason`: why the engine computes
    by itself after all.
    """

    kind: str = "stock"
    _layers: int = 0
    _before: list[tuple[Any, str, Any]] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    reason: str | None = None

    def __len__(self) -> int:
        """Of the layers that kernels compute."""
        return self._layers

    @property
    def compute(self) -> str:
        return self.kind if self._layers else "stock"

    def outcome(self) -> dict[str, Any]:
        """Of the trial, in the names of the log; empty where there was nothing to try."""
        numbers = list(filter(math.isfinite, self.differences.values()))  # JSON has no others
        difference = {"difference": max(numbers)} if numbers else {}
        return difference | ({"reason": self.reason} if self.reason else {})

    def put(self, module: Any, name: str, value: Any) -> None:
        self.set_aside(module, name, value)
        self._layers += 1

    def set_aside(self, module: Any, name: str, value: Any) -> None:
        """An attribute that stands in the way of the kernels, or that is not there."""
        self._before.append((module, name, module.__dict__.get(name, ABSENT)))
        setattr(module, name, value)

    def take_away(self) -> None:
        """Leaves the layers as they were, and what belongs to the kernels to the garbage collector."""
        while self._before:
            module, name, value = self._before.pop()
            if value is ABSENT:
                delattr(module, name)
            else:
                setattr(module, name, value)
        self._layers = 0


@contextmanager
def kernels(backend: Backend, model: Any, compute: str, log: Log) -> Iterator[str]:
    """How the products of the steps within are computed: "fast", "fp8", or "stock", by the engine itself."""
    placed = backend.place_kernels(model, compute)
    try:
        if known := placed.outcome():
            log("kernels", compute=placed.compute, modules=len(placed), **known)
        yield placed.compute
    finally:
        placed.take_away()
        free_memory()
