"""What the kernels compute, written down in plain torch with its own gradients: the tests and the look before a
training hold them against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.nn.functional import silu

from job.training.kernels.adapters import LowRank

if TYPE_CHECKING:
    from torch import Tensor


def projected(x: Tensor, weights: Tensor, adapters: Sequence[LowRank], bias: Tensor | None = None) -> list[Tensor]:
    """weights: [sum of outputs, inputs], bias: [sum of outputs] → for each adapter [..., its outputs]"""
    widths = [adapter.b.shape[0] for adapter in adapters]
    parts = weights.to(x.dtype).split(widths)
    projections = [_with(adapter, x, part) for adapter, part in zip(adapters, parts, strict=True)]
    if bias is None:
        return projections
    return [y + part for y, part in zip(projections, bias.to(x.dtype).split(widths), strict=True)]


def gated(x: Tensor, wide: Tensor, wide_adapters: Sequence[LowRank], down: Tensor, down_adapter: LowRank) -> Tensor:
    """wide: [2 · width, inputs], down: [inputs, width] → the shape of x"""
    opened, up = projected(x, wide, wide_adapters)
    return projected(silu(opened) * up, down, [down_adapter])[0]


def _with(adapter: LowRank, x: Tensor, weights: Tensor) -> Tensor:
    """One projection."""
    a, b = adapter.a.to(x.dtype), adapter.b.to(x.dtype)
    return x @ weights.t() + adapter.scale * (x @ a.t()) @ b.t()
