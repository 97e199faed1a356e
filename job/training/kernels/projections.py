"""Projections of one input with their adapters: what they give, and all of their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from job.training.kernels.adapters import Adapters
from job.training.kernels.frozen import Frozen
from job.training.kernels.products import widened

if TYPE_CHECKING:
    from torch import Tensor


class Projections(torch.autograd.Function):
    """y = x Wᵀ + (x aᵀ) bᵀ for all projections at once.

    One product of each kind for all of them: with the frozen weights, with the adapters' a and b, for the gradients.
    `adapters.weights` are arguments so that autograd hands their gradients on.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Frozen, adapters: Adapters, *_: Tensor) -> tuple[Tensor, ...]:
        """x: [..., inputs] → for each projection [..., its outputs], views of one tensor."""
        flat = x.reshape(-1, x.shape[-1])
        narrow = flat @ adapters.a.t()
        y = frozen.output(flat).addmm_(narrow, adapters.b.t())
        ctx.save_for_backward(flat, narrow)
        ctx.frozen, ctx.adapters, ctx.shape = frozen, adapters, x.shape
        y = y.view(*x.shape[:-1], -1)
        return tuple(y[..., width] for width in adapters.widths)

    @staticmethod
    def backward(ctx: Any, *by_outputs: Tensor) -> tuple[Any, ...]:
        flat, narrow = ctx.saved_tensors
        by_y = side_by_side(by_outputs)
        by_narrow = by_y @ ctx.adapters.b
        by_x = ctx.frozen.gradient(by_y).addmm_(by_narrow, ctx.adapters.a)
        gradients = ctx.adapters.gradients(widened(by_narrow.t(), flat), widened(by_y.t(), narrow))
        return by_x.view(ctx.shape), None, None, *gradients


def side_by_side(parts: tuple[Tensor, ...]) -> Tensor:
    """[..., width] each → [tokens, sum of widths]"""
    if len(parts) == 1:
        return parts[0].reshape(-1, parts[0].shape[-1])
    whole = torch.cat(parts, -1)
    return whole.view(-1, whole.shape[-1])
