"""Numbers of 8 bits (e4m3) with a scale a row, and their products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 448.0  # of e4m3
LEAST = 1e-12  # of a scale: a row of zeros stays one


@dataclass(frozen=True)
class Scaled:
    """`numbers`: [rows, width] in e4m3; times `scales`, [rows, 1] in fp32, they are what was given."""

    numbers: Tensor
    scales: Tensor

    def given(self) -> Tensor:
        """In fp32."""
        return self.numbers.float() * self.scales


def scaled_rows(x: Tensor) -> Scaled:
    """Each row of x, [rows, width], by its own largest number."""
    if x.is_cuda:
        from job.training.kernels.triton_kernels import scaled_rows as on_gpu

        return Scaled(*on_gpu(x))
    import torch

    scales = (x.abs().amax(1, keepdim=True).float() / LARGEST).clamp_(min=LEAST)
    return Scaled((x.float() / scales).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales)


def product(x: Scaled, weights: Scaled, dtype: Any) -> Tensor:
    """x: [tokens, width], weights: [outputs, width] → [tokens, outputs] in `dtype`."""
    import torch

    if not x.numbers.is_cuda:
        return (x.given() @ weights.given().t()).to(dtype)
    return torch._scaled_mm(
        x.numbers, weights.numbers.t(), scale_a=x.scales, scale_b=weights.scales.t(), out_dtype=dtype,
        use_fast_accum=True,
    )  # fmt: skip
