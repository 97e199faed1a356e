"""Products whose sums are kept in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def widened(x: Tensor, y: Tensor) -> Tensor:
    """x y in fp32: over so many tokens, 16 bits would round what adds up."""
    import torch

    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, y, out_dtype=torch.float32)
    return x.float() @ y.float() if x.dtype in (torch.bfloat16, torch.float16) else x @ y
