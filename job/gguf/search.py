"""Which scale suits each group of weights best: the searches of llama.cpp's quantisers, for all groups at once.

A group lies along the first dimension of a tensor: (weights of a group, groups of a block, blocks), fp32; what is
known of a group has the other two dimensions. So that a GPU finds the very bits that llama.cpp's C finds, every sum
runs over a group's weights one after another, products are not fused with sums, and no quotient is replaced by a
product with a reciprocal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TINY = 1e-15  # a group without a larger weight is taken as zero
STEP = 0.1  # by how much of a level the tried scales differ
REFINEMENTS = 5
# 1.5 * 2**23: added to a number below 2**22, it leaves the nearest integer in the low bits of the mantissa
ROUNDING = 12_582_912.0


def affine(
    x: torch.Tensor, weights: torch.Tensor, top: int, first: float, tries: int, absolute: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scale, low, levels): x is about low + scale * level, with levels from 0 to `top` and low at most 0.

    Levels are taken with scales that spread a group over about `top` of them; to each of the `tries` a line is fitted
    by weighted least squares, and the one with the smallest weighted error (absolute or squared) wins.
    """
    import torch

    low, high = x.amin(0).clamp_(max=0), x.amax(0)
    flat = high == low
    levels, spare, products = torch.empty_like(x), torch.empty_like(x), x.new_empty((x.shape[0], 3, *x.shape[1:]))
    by_level, by_square, by_weight = products.unbind(1)
    sum_w, sum_x = in_order(weights), in_order(weights * x)

    def take_levels(inverse: torch.Tensor, low: torch.Tensor) -> None:
        torch.sub(x, low, out=levels).mul_(inverse).round_().clamp_(0, top)

    def error_of(scale: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        torch.mul(levels, scale, out=spare).add_(low).sub_(x)
        distance = spare.abs_() if absolute else spare.mul_(spare)
        return in_order(distance.mul_(weights))

    inverse = divided(top, high - low)
    take_levels(inverse, low)
    scale = divided(1, inverse)
    error, chosen = error_of(scale, low), (inverse, low)
    for width in _widths(top, first, range(tries)):
        inverse = divided(width, high - low)  # the best fit's low: it moves
        take_levels(inverse, low)
        torch.mul(weights, levels, out=by_level)
        torch.mul(by_level, levels, out=by_square)
        torch.mul(by_level, x, out=by_weight)
        sum_l, sum_l2, sum_xl = in_order(products)
        spread = sum_w * sum_l2 - sum_l * sum_l
        fitted_low = (sum_l2 * sum_x - sum_l * sum_xl) / spread
        fitted = torch.where(fitted_low > 0, sum_xl / sum_l2, (sum_w * sum_xl - sum_x * sum_l) / spread)
        fitted_low.clamp_(max=0)
        fitted_error = error_of(fitted, fitted_low)
        better = (spread > 0) & (fitted_error < error)
        chosen = (torch.where(better, inverse, chosen[0]), torch.where(better, low, chosen[1]))
        scale, low = torch.where(better, fitted, scale), torch.where(better, fitted_low, low)
        error = torch.where(better, fitted_error, error)
    take_levels(*chosen)
    return scale.masked_fill_(flat, 0), low, levels.masked_fill_(flat, 0)


def symmetric(x: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, levels): x is about scale * (level - top), levels from 0 to 2 * `top` - 1; larger weights count for more.

    The weight farthest from zero gets the lowest level or one nearby: nine narrower and nine wider scales are tried.
    """
    import torch

    peak = farthest(x)
    squares = x * x
    cubes = squares * x
    levels, products = torch.empty_like(x), x.new_empty((x.shape[0], 2, *x.shape[1:]))
    by_weight, by_square = products.unbind(1)

    def take_levels(inverse: torch.Tensor) -> None:
        torch.mul(x, inverse, out=levels).round_().clamp_(-top, top - 1)

    def sums() -> Any:
        torch.mul(cubes, levels, out=by_weight)
        torch.mul(squares, levels, out=by_square).mul_(levels)
        return in_order(products)

    chosen = divided(-top, peak)
    take_levels(chosen)
    sum_xl, sum_l2 = sums()
    scale = torch.where(sum_l2 != 0, sum_xl / sum_l2, 0)
    best = scale * sum_xl
    for width in _widths(top, 0, [*range(-9, 0), *range(1, 10)]):
        inverse = divided(-width, peak)
        take_levels(inverse)
        sum_xl, sum_l2 = sums()
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        scale = torch.where(better, sum_xl / sum_l2, scale)
        best = torch.where(better, scale * sum_xl, best)
        chosen = torch.where(better, inverse, chosen)
    take_levels(chosen)
    empty = peak.abs() < TINY
    return scale.masked_fill_(empty, 0), levels.add_(top).masked_fill_(empty, 0)


def refined(x: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `symmetric`; but one scale is taken, and each weight in turn moves to the level that suits all others."""
    import torch

    peak = farthest(x)
    squares = x * x
    cubes = squares * x
    levels = (x * divided(-top, peak)).round_().clamp_(-top, top - 1)
    sum_xl, sum_l2 = in_order(cubes * levels), in_order(squares * levels * levels)
    for index in list(range(x.shape[0])) * REFINEMENTS:
        square, cube, level = squares[index], cubes[index], levels[index]
        rest_xl = sum_xl - cube * level
        rest_l2 = sum_l2 - square * level * level
        moved = _nearest(x[index] * rest_l2 / rest_xl).clamp_(-top, top - 1)
        moved_xl = rest_xl + cube * moved
        moved_l2 = rest_l2 + square * moved * moved
        better = (rest_xl > 0) & (moved != level) & (moved_l2 > 0)
        better &= moved_xl * moved_xl * sum_l2 > sum_xl * sum_xl * moved_l2
        levels[index] = torch.where(better, moved, level)
        sum_xl, sum_l2 = torch.where(better, moved_xl, sum_xl), torch.where(better, moved_l2, sum_l2)
    empty = peak.abs() < TINY
    scale = torch.where(sum_l2 > 0, sum_xl / sum_l2, 0)
    return scale.masked_fill_(empty, 0), levels.add_(top).masked_fill_(empty, 0)


# ------------------------------------------------------------------------------------------------ arithmetic as in C


def in_order(terms: torch.Tensor) -> torch.Tensor:
    """The sum over the first dimension, from the first to the last: `sum` would pair them."""
    total = terms[0].clone()
    for term in terms[1:].unbind():
        total += term
    return total


def divided(dividend: float, divisor: torch.Tensor) -> torch.Tensor:
    """Their quotient: with a Python number torch would multiply by the reciprocal, which rounds twice."""
    return divisor.new_full((), dividend) / divisor


def farthest(x: torch.Tensor) -> torch.Tensor:
    """Along the first dimension, the value with the largest magnitude; the first of several."""
    return x.gather(0, x.abs().argmax(0, keepdim=True))[0]


def _widths(top: int, first: float, steps: Iterable[int]) -> list[float]:
    import torch

    widths: list[float] = (torch.tensor(list(steps), dtype=torch.float32) * STEP + first + top).tolist()
    return widths


def _nearest(values: torch.Tensor) -> torch.Tensor:
    """Rounded as llama.cpp rounds: the same as `round` up to 2**22, and beyond it, where a quotient may come, not."""
    import torch

    return (values + ROUNDING).view(torch.int32).bitwise_and_(0x7FFFFF).sub_(0x400000).float()
