"""The gated feed-forward layer with its adapters: down(silu(gate x) · up x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from job.training.kernels.adapters import Adapters
from job.training.kernels.frozen import Frozen
from job.training.kernels.gating import gate, gate_gradients
from job.training.kernels.products import widened

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """`wide`: gate and up, one below the other; `down`: the way back."""

    wide: Frozen
    wide_adapters: Adapters
    down: Frozen
    down_adapters: Adapters

    def fresh(self) -> Layer:
        self.wide_adapters.fresh()
        self.down_adapters.fresh()
        return self

    @property
    def weights(self) -> list[Tensor]:
        return [*self.wide_adapters.weights, *self.down_adapters.weights]


class Gated(torch.autograd.Function):
    """The adapters' part of gate and up, and of the gradient of what goes into down, is added where these are read
    anyway: no pass over them is made for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, *_: Tensor) -> Tensor:
        """x: [..., width] → the same shape."""
        flat = x.reshape(-1, x.shape[-1])
        wide, down = layer.wide_adapters, layer.down_adapters
        narrow = flat @ wide.a.t()
        gate_up = layer.wide.output(flat)
        hidden = gate(gate_up, narrow, wide.b)
        narrow_hidden = hidden @ down.a.t()
        y = layer.down.output(hidden).addmm_(narrow_hidden, down.b.t())
        ctx.save_for_backward(flat, narrow, gate_up, narrow_hidden)
        ctx.layer, ctx.shape = layer, x.shape
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, by_y: Tensor) -> tuple[Any, ...]:
        """Overwrites the saved output of gate and up: a graph is gone through once."""
        flat, narrow, gate_up, narrow_hidden = ctx.saved_tensors
        layer, wide, down = ctx.layer, ctx.layer.wide_adapters, ctx.layer.down_adapters
        by_y = by_y.reshape(-1, by_y.shape[-1])
        by_narrow_hidden = by_y @ down.b
        by_hidden = layer.down.gradient(by_y)
        hidden, by_gate_up = gate_gradients(by_hidden, gate_up, narrow, wide.b, by_narrow_hidden, down.a)
        of_down = down.gradients(widened(by_narrow_hidden.t(), hidden), widened(by_y.t(), narrow_hidden))
        del hidden, by_hidden
        by_narrow = by_gate_up @ wide.b
        by_x = layer.wide.gradient(by_gate_up).addmm_(by_narrow, wide.a)
        of_wide = wide.gradients(widened(by_narrow.t(), flat), widened(by_gate_up.t(), narrow))
        return by_x.view(ctx.shape), None, *of_wide, *of_down
