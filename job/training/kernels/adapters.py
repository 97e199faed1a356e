"""Adapters of projections that read the same input, side by side, in the type that is computed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_steps = 0  # of all optimisers of this process: fused ones change a weight without counting its version up
_watching = False


def watch_steps() -> None:
    """Has `Adapters` notice that an optimiser has changed its weights."""
    global _watching
    if _watching:
        return
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(_count)
    _watching = True


def _count(*_: Any) -> None:
    global _steps
    _steps += 1


@dataclass(frozen=True)
class LowRank:
    """y += scale · (x aᵀ) bᵀ. a: [rank, width of x], b: [width of y, rank]; what is trained."""

    a: Tensor
    b: Tensor
    scale: float


class Adapters:
    """Of n projections of one input, as one adapter of the sum of their ranks.

    `a`: [ranks, width of x], one below the other. `b`: [widths of y, ranks], each in its own rows and columns with its
    scale, zero elsewhere. Both are copies, made once a step of the optimiser and not once a pass.
    """

    def __init__(self, parts: Sequence[LowRank], dtype: Any) -> None:
        import torch

        self.parts = list(parts)
        ranks, widths = [part.a.shape[0] for part in parts], [part.b.shape[0] for part in parts]
        self.ranks, self.widths = _slices(ranks), _slices(widths)
        device = parts[0].a.device
        self.a = torch.empty(sum(ranks), parts[0].a.shape[1], dtype=dtype, device=device)
        self.b = torch.zeros(sum(widths), sum(ranks), dtype=dtype, device=device)
        self._made_of: tuple[Any, ...] = ()

    @property
    def weights(self) -> list[Tensor]:
        """In the order of `gradients`."""
        return [weight for part in self.parts for weight in (part.a, part.b)]

    def fresh(self) -> Adapters:
        """With `a` and `b` of what the weights are now."""
        made_of = (_steps, *((weight._version, weight.data_ptr()) for weight in self.weights))
        if made_of != self._made_of:
            self._copy()
            self._made_of = made_of
        return self

    def _copy(self) -> None:
        import torch

        with torch.no_grad():
            for part, rank, width in zip(self.parts, self.ranks, self.widths, strict=True):
                self.a[rank] = part.a
                self.b[width, rank] = part.b * part.scale

    def gradients(self, by_a: Tensor, by_b: Tensor) -> list[Tensor]:
        """Of `weights`, from those of `a` and of b without scales, of which only the blocks are looked at."""
        found = []
        for part, rank, width in zip(self.parts, self.ranks, self.widths, strict=True):
            found += [by_a[rank], by_b[width, rank] * part.scale]
        return found


def _slices(lengths: Sequence[int]) -> list[slice]:
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
