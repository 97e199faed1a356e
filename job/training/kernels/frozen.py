"""The frozen weights of projections that read the same input, and their products with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from job.training.kernels.fp8 import Scaled, product, scaled_rows

if TYPE_CHECKING:
    from torch import Tensor

Dequantise = Callable[..., Any]  # (weight, its quant state, out=, dtype=)


class Frozen(Protocol):
    """Weights [outputs, inputs] and a bias [outputs] or none; those of several projections one below the other."""

    bias: Tensor | None

    def output(self, x: Tensor) -> Tensor:
        """x: [tokens, inputs] → [tokens, outputs]"""
        ...

    def gradient(self, by_output: Tensor) -> Tensor:
        """by_output: [tokens, outputs] → [tokens, inputs]"""
        ...


def linear(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + bias"""
    import torch

    return torch.nn.functional.linear(x, weights, bias)


class Packed:
    """In NF4; made 16 bits wide for each product, all of them in one buffer."""

    def __init__(
        self, parts: Sequence[tuple[Any, Any]], dequantise: Dequantise, dtype: Any, bias: Tensor | None = None
    ) -> None:
        """`parts`: weights and their quant states."""
        self._parts, self._dequantise, self._dtype, self.bias = list(parts), dequantise, dtype, bias

    def weights(self) -> Tensor:
        import torch

        shapes = [state.shape for _, state in self._parts]
        whole = torch.empty(
            sum(shape[0] for shape in shapes), shapes[0][1], dtype=self._dtype, device=self._parts[0][0].device
        )
        row = 0
        for (weight, state), shape in zip(self._parts, shapes, strict=True):
            self._dequantise(weight, state, out=whole[row : row + shape[0]])
            row += shape[0]
        return whole

    def output(self, x: Tensor) -> Tensor:
        return linear(x, self.weights(), self.bias)

    def gradient(self, by_output: Tensor) -> Tensor:
        return by_output @ self.weights()


class Dense:
    """In 16 bits, or wider. Several lie in one piece of memory; each is a view of it afterwards."""

    def __init__(self, parts: Sequence[Tensor], bias: Tensor | None = None) -> None:
        import torch

        self.bias = bias
        if len(parts) == 1:
            self._whole = parts[0].data
            return
        self._whole = torch.cat([part.data for part in parts])
        row = 0
        for part in parts:
            part.data = self._whole[row : row + part.shape[0]]
            row += part.shape[0]

    def weights(self) -> Tensor:
        return self._whole

    def output(self, x: Tensor) -> Tensor:
        return linear(x, self._whole, self.bias)

    def gradient(self, by_output: Tensor) -> Tensor:
        return by_output @ self._whole


class InFp8:
    """Of other frozen weights, in e4m3 twice: with a scale a row for the output, and with one a column for the
    gradient; what they are multiplied with is scaled row by row. A product costs half of what it does in 16 bits.
    """

    def __init__(self, weights: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self._forward: Scaled = scaled_rows(weights)
        self._backward: Scaled = scaled_rows(weights.t().contiguous())

    def output(self, x: Tensor) -> Tensor:
        y = product(scaled_rows(x), self._forward, x.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def gradient(self, by_output: Tensor) -> Tensor:
        return product(scaled_rows(by_output), self._backward, by_output.dtype)
