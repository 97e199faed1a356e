"""Whether the kernels compute on this machine what they should: tried on a layer's own weights before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from job.training.kernels import reference
from job.training.kernels.adapters import Adapters, LowRank
from job.training.kernels.frozen import Frozen
from job.training.kernels.gated import Gated, Layer
from job.training.kernels.projections import Projections

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 256
SEED = 0
LIMIT = 0.03  # of what they should be, as a length: 16 bits round by 0.004 a number
LIMIT_FP8 = 0.12  # 8 bits by 0.03, in each of up to three products that follow each other


class Trial:
    """Random numbers of its own in the sizes of a layer; those of the process stay as they are."""

    def __init__(self, device: Any, dtype: Any) -> None:
        self._random = torch.Generator(device).manual_seed(SEED)
        self._device, self._dtype = device, dtype

    def numbers(self, *shape: int, scale: float = 1.0, dtype: Any = None) -> Tensor:
        drawn = torch.randn(*shape, generator=self._random, device=self._device, dtype=torch.float32) * scale
        return drawn.to(dtype or self._dtype)

    def adapters(self, like: Adapters) -> Adapters:
        """Of the same sizes, with a part in the output that can be seen; trained in fp32."""
        parts = []
        for part in like.parts:
            a = self.numbers(*part.a.shape, scale=part.a.shape[1] ** -0.5, dtype=torch.float32).requires_grad_()
            b = self.numbers(*part.b.shape, scale=part.b.shape[1] ** -0.5, dtype=torch.float32).requires_grad_()
            parts.append(LowRank(a, b, 0.5))
        return Adapters(parts, like.a.dtype).fresh()


def projections_differ(frozen: Frozen, weights: Tensor, adapters: Adapters) -> float:
    """By how much outputs and gradients differ from the reference with `weights`, the frozen ones in 16 bits: the
    largest of all, each as the length of the difference by the length of what it should be.
    """
    trial = Trial(weights.device, weights.dtype)
    own = trial.adapters(adapters)
    x = trial.numbers(TOKENS, weights.shape[1]).requires_grad_()
    by = [trial.numbers(TOKENS, part.b.shape[0]) for part in own.parts]
    return _largest(
        Projections.apply(x, frozen, own, *own.weights),
        reference.projected(x, weights, own.parts, frozen.bias),
        [x, *own.weights],
        by,
    )


def gated_differs(layer: Layer, wide: Tensor, down: Tensor) -> float:
    """The same of a feed-forward layer."""
    trial = Trial(wide.device, wide.dtype)
    own = Layer(layer.wide, trial.adapters(layer.wide_adapters), layer.down, trial.adapters(layer.down_adapters))
    x = trial.numbers(TOKENS, wide.shape[1]).requires_grad_()
    should = reference.gated(x, wide, own.wide_adapters.parts, down, own.down_adapters.parts[0])
    return _largest([Gated.apply(x, own, *own.weights)], [should], [x, *own.weights], [trial.numbers(*should.shape)])


def _largest(found: Sequence[Tensor], should: Sequence[Tensor], of: Sequence[Tensor], by: Sequence[Tensor]) -> float:
    gradients = torch.autograd.grad(list(found), list(of), list(by))
    wanted = torch.autograd.grad(list(should), list(of), list(by))
    pairs = zip([*found, *gradients], [*should, *wanted], strict=True)
    with torch.no_grad():
        # not Python's max, which goes past what is no number
        return float(torch.stack([(a.float() - b.float()).norm() / b.float().norm() for a, b in pairs]).max())
