"""What the user knows of the machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResourcesSpec:
    """`gpus`: cards that train together, "all" that the machine has. `nodes`: such machines.
    `weights`: each holds them "whole", or they are
    "spread" over them. `price_per_hour`: the user's, in a currency that they know.
    """

    gpus: int | str
    nodes: int
    weights: str
    price_per_hour: float | None

    @property
    def spreads(self) -> bool:
        return self.weights == "spread"

    @property
    def known_gpus(self) -> int:
        """Of "all" nobody knows before the run: 1, to reckon with."""
        return self.gpus if isinstance(self.gpus, int) else 1
