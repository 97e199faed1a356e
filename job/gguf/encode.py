"""Weights in ggml's block formats, computed with torch on any device: the bytes of `ggml_quantize_chunk` without an
imatrix.

Inside, a block is a column: weights are (weights of a group, groups of a block, blocks), bytes (bytes of a block,
blocks). The layouts are those of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from job.gguf.header import tensor_bytes
from job.gguf.search import affine, divided, farthest, in_order, refined, symmetric

if TYPE_CHECKING:
    import torch

SUPERBLOCK = 256  # weights of a k-quant's block
SLICE_WEIGHTS = {"cpu": 1 << 17, "cuda": 1 << 24}  # encoded at once; a search holds eight fp32 copies: 512 MiB on a GPU
TINY_SCALE = 1e-15


def supported(types: Iterable[str]) -> bool:
    """Whether every one of these tensor types can be made here."""
    return ENCODERS.keys() >= set(types)


def encode(weights: torch.Tensor, type_name: str) -> torch.Tensor:
    """(rows, width) fp32 as (rows, bytes of a row) uint8 on the same device, `type_name` being one of `ENCODERS`."""
    import torch

    rows, width = weights.shape
    encoded = torch.empty((rows, tensor_bytes((width,), type_name)), dtype=torch.uint8, device=weights.device)
    rows_at_once = max(1, SLICE_WEIGHTS[weights.device.type] // width)
    for source, target in zip(weights.split(rows_at_once), encoded.split(rows_at_once), strict=True):
        target.copy_(ENCODERS[type_name](source).reshape(target.shape))
    return encoded


# ------------------------------------------------------------------------------------------------ one scale a block


def _q8_0(weights: torch.Tensor) -> torch.Tensor:
    import torch

    x = _grouped(weights, 32, 32)
    scale = _quotient(x.abs().amax(0), 127)
    x = x * _inverse(scale)
    whole = x.trunc()
    levels = whole + (x - whole).mul_(2).trunc_()  # halves away from zero
    return _columns(_half(scale[0]), levels.to(torch.int8).view(torch.uint8)[:, 0])


def _around_zero(weights: torch.Tensor, top: int) -> torch.Tensor:
    x = _grouped(weights, 32, 32)
    middle = (top + 1) // 2
    scale = _quotient(farthest(x), -middle)
    levels = (x * _inverse(scale)).add_(middle + 0.5)
    return _columns(_half(scale[0]), *_halves_of_a_block(levels, top))


def _above_minimum(weights: torch.Tensor, top: int) -> torch.Tensor:
    x = _grouped(weights, 32, 32)
    low = x.amin(0)
    scale = _quotient(x.amax(0) - low, top)
    levels = (x - low).mul_(_inverse(scale)).add_(0.5)
    return _columns(_half(scale[0]), _half(low[0]), *_halves_of_a_block(levels, top))


def _halves_of_a_block(levels: torch.Tensor, top: int) -> list[torch.Tensor]:
    """The fifth bits, if there are any, and the lower four of weight n beside those of weight n + 16."""
    levels = levels.clamp_(0, top).byte()[:, 0]
    fifth = [_merged((levels >> 4).view(4, 8, -1), 1, 1)] if top > 15 else []
    return [*fifth, _merged((levels & 15).view(2, 16, -1), 0, 4)]


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(scale != 0, divided(1, scale), 0)


# -------------------------------------------------------------------------------------- k-quants with scales and minima


def _q2_k(weights: torch.Tensor) -> torch.Tensor:
    x = _grouped(weights, 16)
    scales, minima, levels, halves = _affine_levels(x, x.abs(), 3, -0.5, 16, absolute=True, scale_top=15)
    return _columns(scales | minima << 4, _low_two_bits(levels), halves)


def _q4_k(weights: torch.Tensor) -> torch.Tensor:
    x = _grouped(weights, 32)
    scales, minima, levels, halves = _affine_levels(x, _importance(x), 15, -1, 21, absolute=False, scale_top=63)
    return _columns(halves, _six_bit_pairs(scales, minima), _nibbles(levels))


def _q5_k(weights: torch.Tensor) -> torch.Tensor:
    x = _grouped(weights, 32)
    scales, minima, levels, halves = _affine_levels(x, _importance(x), 31, -0.5, 16, absolute=False, scale_top=63)
    high = _merged((levels >> 4).view(8, 32, -1), 0, 1)
    return _columns(halves, _six_bit_pairs(scales, minima), high, _nibbles(levels & 15))


def _importance(x: torch.Tensor) -> torch.Tensor:
    mean = _quotient(in_order(x * x), x.shape[0])
    return mean.double().sqrt_().float() + x.abs()  # the square root of fp32 is off by one bit on CPUs


def _affine_levels(
    x: torch.Tensor, importance: torch.Tensor, top: int, first: float, tries: int, absolute: bool, scale_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scales, minima, levels, the bytes of the two scales of the block) as integers."""
    import torch

    scale, low, searched = affine(x, importance, top, first, tries, absolute)
    scales, step = _coded(scale, scale_top)
    minima, minimum_step = _coded(0 - low, scale_top)  # not -low: that makes a negative zero
    scale, minimum = scales * step.float(), minima * minimum_step.float()
    levels = (x + minimum).div_(scale).round_().clamp_(0, top)
    levels = torch.where(scale == 0, searched, levels)
    return scales.byte(), minima.byte(), _in_rows(levels), torch.cat([_half(step), _half(minimum_step)])


def _coded(values: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every group's value as a multiple, 0 to `top`, of a step that its block stores in fp16."""
    import torch

    peak = values.amax(0).clamp_(min=0)
    codes = (values * torch.where(peak > 0, divided(top, peak), 0)).round_().clamp_(0, top)
    return codes, _quotient(peak, top).half()


# ------------------------------------------------------------------------------------------------ k-quants around zero


def _q3_k(weights: torch.Tensor) -> torch.Tensor:
    import torch

    x = _grouped(weights, 16)
    scale, searched = refined(x, 4)
    inverse = divided(-32, farthest(scale))
    empty = inverse.isinf()
    codes = (scale * inverse).round_().clamp_(-32, 31).masked_fill_(empty, -32)
    step = divided(1, inverse).masked_fill_(empty, 0).half()
    levels = _levels_around_zero(x, codes * step.float(), 4, searched)
    scales = (codes + 32).byte()
    packed = torch.cat([_merged((scales & 15).view(2, 8, -1), 0, 4), _merged((scales >> 4).view(4, 4, -1), 0, 2)])
    return _columns(_merged((levels >> 2).view(8, 32, -1), 0, 1), _low_two_bits(levels & 3), packed, _half(step))


def _q6_k(weights: torch.Tensor) -> torch.Tensor:
    import torch

    x = _grouped(weights, 16)
    scale, searched = symmetric(x, 32)
    peak = farthest(scale)
    inverse = divided(-128, peak)
    scales = (scale * inverse).round_().clamp_(max=127)
    step = divided(1, inverse).half()
    levels = _levels_around_zero(x, scales * step.float(), 32, searched)
    low = _merged((levels & 15).view(2, 2, 64, -1), 1, 4).reshape(128, -1)
    high = _merged((levels >> 4).view(2, 4, 32, -1), 1, 2).reshape(64, -1)
    columns = _columns(low, high, scales.to(torch.int8).view(torch.uint8), _half(step))
    return columns.masked_fill_((peak.abs() < TINY_SCALE)[:, None], 0)


def _levels_around_zero(x: torch.Tensor, scale: torch.Tensor, top: int, searched: torch.Tensor) -> torch.Tensor:
    import torch

    levels = (x / scale).round_().clamp_(-top, top - 1).add_(top)
    return _in_rows(torch.where(scale == 0, searched, levels))


# ------------------------------------------------------------------------------------------------ layout


def _grouped(weights: torch.Tensor, group: int, block: int = SUPERBLOCK) -> torch.Tensor:
    return weights.reshape(-1, block // group, group).permute(2, 1, 0).contiguous()


def _in_rows(levels: torch.Tensor) -> torch.Tensor:
    """Levels of a block as bytes in their order: (weights of a block, blocks)."""
    return levels.byte().transpose(0, 1).reshape(SUPERBLOCK, -1)


def _columns(*parts: torch.Tensor) -> torch.Tensor:
    """The blocks, one a row, from the parts of which each has one byte a row."""
    import torch

    return torch.cat(parts).t().contiguous()


def _half(values: torch.Tensor) -> torch.Tensor:
    """fp16 as two rows of bytes."""
    import torch

    return values.half().view(torch.uint8).view(-1, 2).t()


def _merged(fields: torch.Tensor, axis: int, bits: int) -> torch.Tensor:
    """Several small numbers in one byte each: those along `axis`, the first in the lowest `bits`."""
    first, *others = fields.unbind(axis)
    merged = first.clone()
    for place, field in enumerate(others, 1):
        merged |= field << bits * place
    return merged


def _low_two_bits(levels: torch.Tensor) -> torch.Tensor:
    return _merged(levels.view(2, 4, 32, -1), 1, 2).reshape(64, -1)


def _nibbles(levels: torch.Tensor) -> torch.Tensor:
    return _merged(levels.view(4, 2, 32, -1), 1, 4).reshape(128, -1)


def _six_bit_pairs(scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """Eight scales and eight minima in twelve bytes: four of each whole, with the upper bits of the others above."""
    import torch

    scale, minimum = scales[:4] | scales[4:] >> 4 << 6, minima[:4] | minima[4:] >> 4 << 6
    return torch.cat([scale, minimum, scales[4:] & 15 | minima[4:] << 4])


def _quotient(values: torch.Tensor, divisor: float) -> torch.Tensor:
    """A quotient with a number; on a GPU, torch would multiply by its reciprocal."""
    return values / values.new_full((), divisor)


def _f32(weights: torch.Tensor) -> torch.Tensor:
    import torch

    return weights.contiguous().view(torch.uint8)


def _f16(weights: torch.Tensor) -> torch.Tensor:
    return _f32(weights.half())


def _bf16(weights: torch.Tensor) -> torch.Tensor:
    return _f32(weights.bfloat16())


ENCODERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32": _f32, "F16": _f16, "BF16": _bf16, "Q8_0": _q8_0,
    "Q5_1": partial(_above_minimum, top=31), "Q5_0": partial(_around_zero, top=31),
    "Q4_1": partial(_above_minimum, top=15), "Q4_0": partial(_around_zero, top=15),
    "Q6_K": _q6_k, "Q5_K": _q5_k, "Q4_K": _q4_k, "Q3_K": _q3_k, "Q2_K": _q2_k,
}  # fmt: skip
