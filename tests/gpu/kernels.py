"""The training kernels on a GPU: figures beside the reference's, seconds of a layer beside the engine's own.

python -m tests.gpu.kernels            needs an NVIDIA GPU; one JSON line a case
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from job.training.kernels.adapters import Adapters, LowRank
from job.training.kernels.check import gated_differs, projections_differ
from job.training.kernels.frozen import Dense, InFp8, Packed
from job.training.kernels.gated import Gated, Layer
from job.training.kernels.projections import Projections

WIDTH, INNER, KEYS = 4096, 14336, 1024  # of the 8B shape
RANKS = (8, 16, 64, 160)
TOKENS = 16_384


def packed(*shapes: tuple[int, int]) -> Packed:
    import bitsandbytes.functional as bnb

    parts = []
    for number, shape in enumerate(shapes):
        weight = torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(number)) * 0.02
        parts.append(bnb.quantize_4bit(weight.bfloat16(), quant_type="nf4", compress_statistics=True))
    try:
        import unsloth  # noqa: F401
        from unsloth.kernels.utils import fast_dequantize as dequantise
    except ImportError:
        dequantise = bnb.dequantize_4bit
    return Packed(parts, dequantise, torch.bfloat16)


def adapters(rank: int, *shapes: tuple[int, int]) -> Adapters:
    def weight(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device="cuda") * shape[1] ** -0.5).requires_grad_()

    return Adapters(
        [LowRank(weight(rank, wide), weight(high, rank), 0.25) for high, wide in shapes], torch.bfloat16
    ).fresh()


def milliseconds(work: Callable[[], Any], times: int = 20) -> float:
    for _ in range(5):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return round(start.elapsed_time(end) / times, 3)


def main() -> None:
    qkv, wide, down = [(WIDTH, WIDTH), (KEYS, WIDTH), (KEYS, WIDTH)], [(INNER, WIDTH)] * 2, [(WIDTH, INNER)]
    bases = {"qkv": packed(*qkv), "wide": packed(*wide), "down": packed(*down)}
    dense = {name: base.weights() for name, base in bases.items()}
    in_fp8 = {name: InFp8(weights) for name, weights in dense.items()}
    for rank in RANKS:
        for name, frozen in (
            ("bf16", bases),
            ("dense", {key: Dense([each]) for key, each in dense.items()}),
            ("fp8", in_fp8),
        ):
            layer = Layer(frozen["wide"], adapters(rank, *wide), frozen["down"], adapters(rank, *down))
            print(json.dumps({
                "rank": rank, "weights": name,
                "projections": round(projections_differ(frozen["qkv"], dense["qkv"], adapters(rank, *qkv)), 5),
                "gated": round(gated_differs(layer, dense["wide"], dense["down"]), 5),
            }), flush=True)  # fmt: skip
    x = torch.randn(1, TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for name, frozen in (("bf16", bases), ("fp8", in_fp8)):
        of_qkv = adapters(16, *qkv)
        layer = Layer(frozen["wide"], adapters(16, *wide), frozen["down"], adapters(16, *down))
        works: dict[str, Callable[[], Any]] = {
            "qkv": lambda frozen=frozen, own=of_qkv: Projections.apply(x, frozen["qkv"], own, *own.weights),  # type: ignore[misc]
            "gated": lambda layer=layer: Gated.apply(x, layer, *layer.weights),  # type: ignore[misc]
        }
        for part, work in works.items():
            forward = milliseconds(work)

            def both(work: Callable[[], Any] = work) -> None:
                y = work()
                outputs = list(y) if isinstance(y, tuple) else [y]
                torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])

            print(
                json.dumps({"part": part, "weights": name, "forward_ms": forward, "both_ms": milliseconds(both)}),
                flush=True,
            )
    profile(works["gated"])


def profile(work: Callable[[], Any]) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as seen:
        work().backward(torch.ones(1, TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16))
        torch.cuda.synchronize()
    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=80))


if __name__ == "__main__":
    main()
