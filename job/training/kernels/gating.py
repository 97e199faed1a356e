"""silu(gate) · up and its gradients, with the adapters' part added on the way.

On a GPU these are the kernels of `triton_kernels`; elsewhere, and as what those are held against, plain torch. Both add
in fp32: added in 16 bits, as the engine does, a part of less than half a step of the number it is added to is lost, and
that is most of what a fresh adapter gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import silu

if TYPE_CHECKING:
    from torch import Tensor

# Of adapters that the kernels add. With 128, gate_gradients wants 104 KiB of shared memory where it is compiled for an
# L4; such cards have 99.
MOST_RANK = 64


def gate(gate_up: Tensor, narrow: Tensor, b: Tensor) -> Tensor:
    """gate_up: [tokens, 2 · width] without adapters, narrow: [tokens, 2 · rank], b: [2 · width, 2 · rank] with zeros
    where gate meets up → [tokens, width]. Where the rank is too large for a kernel, `gate_up` is completed in place.
    """
    if not gate_up.is_cuda:
        return _gate(_added(gate_up, narrow, b.t())).to(gate_up.dtype)
    from job.training.kernels import triton_kernels

    if narrow.shape[1] // 2 > MOST_RANK:
        return triton_kernels.gate(gate_up.addmm_(narrow, b.t()), None, None)
    return triton_kernels.gate(gate_up, narrow, b)


def gate_gradients(
    by_hidden: Tensor, gate_up: Tensor, narrow: Tensor, b: Tensor, by_narrow_hidden: Tensor, a: Tensor
) -> tuple[Tensor, Tensor]:
    """What came out of `gate`, [tokens, width], and the gradient of the completed `gate_up`, [tokens, 2 · width].

    by_hidden: [tokens, width] without the adapter of down, by_narrow_hidden: [tokens, rank] and a: [rank, width] are
    that. Both may lie in the memory of what was given.
    """
    if not gate_up.is_cuda:
        found = _gate_gradients(_added(by_hidden, by_narrow_hidden, a), _added(gate_up, narrow, b.t()))
        return found[0].to(gate_up.dtype), found[1].to(gate_up.dtype)
    from job.training.kernels import triton_kernels

    if max(narrow.shape[1] // 2, a.shape[0]) > MOST_RANK:  # gate_up was completed on the way there
        return triton_kernels.gate_gradients(by_hidden.addmm_(by_narrow_hidden, a), gate_up, None, None, None, None)
    return triton_kernels.gate_gradients(by_hidden, gate_up, narrow, b, by_narrow_hidden, a)


def _added(whole: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """whole + left right, in fp32 at least"""
    wide = torch.promote_types(whole.dtype, torch.float32)
    return torch.addmm(whole.to(wide), left.to(wide), right.to(wide))


def _gate(gate_up: Tensor) -> Tensor:
    opened, up = gate_up.chunk(2, 1)
    return silu(opened) * up


def _gate_gradients(by_hidden: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    opened, up = gate_up.chunk(2, 1)
    share = torch.sigmoid(opened)
    by_opened = by_hidden * up * share * (1 + opened * (1 - share))
    return silu(opened) * up, torch.cat([by_opened, by_hidden * opened * share], 1)
