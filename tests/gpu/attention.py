"""Attention over packed rows as torch has it: flash-attention, which the engine calls, beside cuDNN's.

    python -m tests.gpu.attention        needs an NVIDIA GPU

Rows of a batch are log-normal around 500 tokens, as in `grid`. cuDNN makes a plan for each number of rows and longest
row, so it is tried with the batch's own and with a number and a length that stay the same ("fixed"; rows of no tokens
at the end). Prints a JSON line a shape: milliseconds forward, and forward with backward; the first call in seconds; by
how much outputs and gradients differ, as the length of the difference by the length of flash-attention's.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable
from typing import Any

import torch

SHAPES = ((32, 8, 128, 16_384), (32, 8, 64, 32_768), (32, 8, 128, 4_096))  # heads, of keys, width, tokens
LONGEST, FIXED_ROWS = 2048, 64
RUNS = 10

Attention = Callable[..., Any]


def row_ends(tokens: int, seed: int, rows: int | None = None) -> torch.Tensor:
    """Where rows begin and end, [rows + 1]."""
    draw, lengths = random.Random(seed), list[int]()
    while sum(lengths) < tokens:
        lengths.append(min(LONGEST, max(32, int(draw.lognormvariate(6.0, 0.6) * 1.05)), tokens - sum(lengths)))
    ends = [0, *itertools.accumulate(lengths)]
    ends += [tokens] * ((rows or 0) + 1 - len(ends))
    return torch.tensor(ends, dtype=torch.int32, device="cuda")


def longest_of(ends: torch.Tensor) -> int:
    return int(ends.diff().max())


def flash(q: Any, k: Any, v: Any, ends: Any, longest: int, by: Any = None) -> Any:
    scale, window = q.shape[-1] ** -0.5, {"window_size_left": -1, "window_size_right": 0}
    y, sums, seed, offset, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, ends, ends, longest, longest, 0.0, True, return_debug_mask=False, scale=scale, **window
    )
    if by is None:
        return [y]
    found = torch.ops.aten._flash_attention_backward(
        by, q, k, v, y, sums, ends, ends, longest, longest, 0.0, True, seed, offset, scale=scale, **window
    )
    return [y, *found]


def cudnn(q: Any, k: Any, v: Any, ends: Any, longest: int, by: Any = None) -> Any:
    scale = q.shape[-1] ** -0.5
    y, sums, *_, seed, offset, _ = torch.ops.aten._cudnn_attention_forward(
        q, k, v, None, ends, ends, longest, longest, True, 0.0, True, False, scale=scale
    )
    if by is None:
        return [y]
    found = torch.ops.aten._cudnn_attention_backward(
        by, q, k, v, y, sums, seed, offset, None, ends, ends, longest, longest, 0.0, True, scale=scale
    )
    return [y, *found]


def milliseconds(work: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    begin.record()
    for _ in range(RUNS):
        work()
    end.record()
    torch.cuda.synchronize()
    return round(begin.elapsed_time(end) / RUNS, 3)


def tried(attention: Attention, given: tuple[Any, ...], ends: Any, longest: int, should: Any) -> dict[str, Any]:
    *qkv, by = given
    started = time.monotonic()
    found = attention(*qkv, ends, longest, by)
    torch.cuda.synchronize()
    first = round(time.monotonic() - started, 3)
    pairs = zip(found, should, strict=True)
    return {
        "first_seconds": first,
        "differ": [round(float((a.float() - b.float()).norm() / b.float().norm()), 5) for a, b in pairs],
        "forward": milliseconds(lambda: attention(*qkv, ends, longest)),
        "both": milliseconds(lambda: attention(*qkv, ends, longest, by)),
    }


def measure(heads: int, of_keys: int, width: int, tokens: int) -> dict[str, Any]:
    torch.manual_seed(0)
    new = {"device": "cuda", "dtype": torch.bfloat16}
    q, by = (torch.randn(tokens, heads, width, **new) for _ in range(2))
    k, v = (torch.randn(tokens, of_keys, width, **new) for _ in range(2))
    given, found = (q, k, v, by), dict[str, Any]()
    for number, seed in enumerate((0, 5)):  # a second batch has other rows
        own = row_ends(tokens, seed)
        should = flash(q, k, v, own, longest_of(own), by)
        ways = {
            "flash": (flash, own, longest_of(own)), "cudnn": (cudnn, own, longest_of(own)),
            "cudnn, fixed": (cudnn, row_ends(tokens, seed, max(FIXED_ROWS, tokens // 256)), LONGEST),
        }  # fmt: skip
        for name, (attention, ends, longest) in ways.items():
            try:
                result = tried(attention, given, ends, longest, should)
            except RuntimeError as error:
                result = {"failed": str(error)[:300]}
            found[f"{name}, batch {number + 1}"] = result
    return {"heads": heads, "of keys": of_keys, "width": width, "tokens": tokens} | found


def main() -> None:
    for shape in SHAPES:
        print(json.dumps(measure(*shape)), flush=True)


if __name__ == "__main__":
    main()
