"""The kernels themselves, in Triton: imported on a GPU alone."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# Measured on an H200 with 16,384 tokens of 14,336: the fastest of twenty shapes of tile.
GATE_TILE = {"ROWS": 64, "WIDTH": 64, "num_warps": 4}
GRADIENT_TILE = {"ROWS": 32, "WIDTH": 128, "num_warps": 4}
TILES_BELOW = tl.constexpr(16)  # that a program goes through, with the adapters' part for their columns in registers
ROW_BLOCK = 4096  # numbers of a row that are looked at together
LEAST_RANK = 16  # of a product in a tensor core
LARGEST = tl.constexpr(448.0)  # of e4m3
LEAST_SCALE = tl.constexpr(1e-12)


@triton.jit
def _columns(b, n, width, rank, RANK: tl.constexpr):
    """[rank, width] tiles of the adapters' b, of gate and of up."""
    r = tl.arange(0, RANK)
    place = b + n[None, :].to(tl.int64) * (2 * rank) + r[:, None]
    inside = (n[None, :] < width) & (r[:, None] < rank)
    of_up = width.to(tl.int64) * (2 * rank) + rank
    return tl.load(place, mask=inside, other=0.0), tl.load(place + of_up, mask=inside, other=0.0)


@triton.jit
def _rows(narrow, m, rows, stride, rank, RANK: tl.constexpr):
    """A [rows, rank] tile of what the adapters' a made of the input."""
    r = tl.arange(0, RANK)
    inside = (m[:, None] < rows) & (r[None, :] < rank)
    return tl.load(narrow + m[:, None].to(tl.int64) * stride + r[None, :], mask=inside, other=0.0)


@triton.jit
def _gate(gate_up, narrow, b, hidden, rows, width, rank, RANK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = (m[:, None] < rows) & (n[None, :] < width)
    place = gate_up + m[:, None].to(tl.int64) * (2 * width) + n[None, :]
    opened = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    if RANK > 0:
        b_gate, b_up = _columns(b, n, width, rank, RANK)
        opened = tl.dot(_rows(narrow, m, rows, 2 * rank, rank, RANK), b_gate, opened)
        up = tl.dot(_rows(narrow + rank, m, rows, 2 * rank, rank, RANK), b_up, up)
    tl.store(hidden + m[:, None].to(tl.int64) * width + n[None, :], opened * tl.sigmoid(opened) * up, mask=inside)


@triton.jit
def _gate_gradients(
    by_hidden, gate_up, narrow, b, by_narrow_hidden, a, rows, width, rank, down_rank,
    RANK: tl.constexpr, DOWN_RANK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    if RANK > 0:
        b_gate, b_up = _columns(b, n, width, rank, RANK)
    if DOWN_RANK > 0:
        r = tl.arange(0, DOWN_RANK)
        a_inside = (n[None, :] < width) & (r[:, None] < down_rank)
        a_down = tl.load(a + r[:, None].to(tl.int64) * width + n[None, :], mask=a_inside, other=0.0)
    for tile in tl.range(0, TILES_BELOW, num_stages=3):
        m = (tl.program_id(1) * TILES_BELOW + tile) * ROWS + tl.arange(0, ROWS)
        inside = (m[:, None] < rows) & (n[None, :] < width)
        at_hidden = by_hidden + m[:, None].to(tl.int64) * width + n[None, :]
        at_gate = gate_up + m[:, None].to(tl.int64) * (2 * width) + n[None, :]
        by = tl.load(at_hidden, mask=inside, other=0.0).to(tl.float32)
        opened = tl.load(at_gate, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(at_gate + width, mask=inside, other=0.0).to(tl.float32)
        if DOWN_RANK > 0:
            # 16 bits on the way between the layouts of the product and of memory: half of the traffic
            part = tl.dot(_rows(by_narrow_hidden, m, rows, down_rank, down_rank, DOWN_RANK), a_down)
            by += part.to(gate_up.dtype.element_ty).to(tl.float32)
        if RANK > 0:
            part = tl.dot(_rows(narrow, m, rows, 2 * rank, rank, RANK), b_gate)
            opened += part.to(gate_up.dtype.element_ty).to(tl.float32)
            part = tl.dot(_rows(narrow + rank, m, rows, 2 * rank, rank, RANK), b_up)
            up += part.to(gate_up.dtype.element_ty).to(tl.float32)
        share = tl.sigmoid(opened)
        silu = opened * share
        tl.store(at_hidden, silu * up, mask=inside)
        tl.store(at_gate, by * up * share * (1.0 + opened * (1.0 - share)), mask=inside)
        tl.store(at_gate + width, by * silu, mask=inside)


@triton.jit
def _scaled_rows(x, numbers, scales, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        inside = start + columns < width
        found = tl.load(x + row * width + start + columns, mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(found))
    scale = tl.maximum(tl.max(largest, 0) / LARGEST, LEAST_SCALE)
    tl.store(scales + row, scale)
    for start in range(0, width, BLOCK):
        inside = start + columns < width
        found = tl.load(x + row * width + start + columns, mask=inside, other=0.0).to(tl.float32) / scale
        found = tl.minimum(tl.maximum(found, -LARGEST), LARGEST)
        tl.store(numbers + row * width + start + columns, found.to(tl.float8e4nv), mask=inside)


def gate(gate_up: torch.Tensor, narrow: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor:
    """As `gating.gate`; without adapters where `narrow` is None."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    hidden = gate_up.new_empty(rows, width)
    rank = 0 if narrow is None else narrow.shape[1] // 2
    with torch.cuda.device_of(gate_up):
        _gate[_grid(rows, width, 1, **GATE_TILE)](
            gate_up, _or(narrow, gate_up), _or(b, gate_up), hidden, rows, width, rank, RANK=_padded(rank), **GATE_TILE
        )
    return hidden


def gate_gradients(
    by_hidden: torch.Tensor, gate_up: torch.Tensor, narrow: torch.Tensor | None, b: torch.Tensor | None,
    by_narrow_hidden: torch.Tensor | None, a: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """As `gating.gate_gradients`, in the memory of `by_hidden` and `gate_up`."""
    rows, width = by_hidden.shape
    rank = 0 if narrow is None else narrow.shape[1] // 2
    down_rank = 0 if a is None else a.shape[0]
    with torch.cuda.device_of(gate_up):
        _gate_gradients[_grid(rows, width, TILES_BELOW.value, **GRADIENT_TILE)](
            by_hidden, gate_up, _or(narrow, gate_up), _or(b, gate_up), _or(by_narrow_hidden, gate_up), _or(a, gate_up),
            rows, width, rank, down_rank, RANK=_padded(rank), DOWN_RANK=_padded(down_rank), **GRADIENT_TILE,
        )  # fmt: skip
    return by_hidden, gate_up


def scaled_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `fp8.scaled_rows`."""
    x = x.contiguous()
    rows, width = x.shape
    numbers = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _scaled_rows[(rows,)](
            x, numbers, scales, width, BLOCK=min(triton.next_power_of_2(width), ROW_BLOCK), num_warps=8
        )
    return numbers, scales


def _grid(rows: int, width: int, tiles: int, ROWS: int, WIDTH: int, **_: int) -> tuple[int, int]:
    """The tiles of some rows come one after the other: what they share of the adapters stays in the cache."""
    return triton.cdiv(width, WIDTH), triton.cdiv(rows, ROWS * tiles)


def _padded(rank: int) -> int:
    return max(LEAST_RANK, triton.next_power_of_2(rank)) if rank else 0


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> Any:
    """A pointer that is not read."""
    return other if tensor is None else tensor
