"""The command on a device that has memory for only so many rows of a forward pass: what a small GPU does, without one.

`limit(rows, first_pass, last_pass, rank)`: rows that fit, from which training pass on; none from `last_pass` on. Of
several processes, in the one of that `rank`.
"""

from __future__ import annotations

import math
from typing import Any

from job.__main__ import main


def limit(rows: int, first_pass: int, last_pass: float, rank: int | None) -> None:
    """Makes every whole-model pass with more rows fail as PyTorch's allocator does."""
    import torch

    passes = 0

    def refuse(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        nonlocal passes
        name = type(module).__name__
        if (
            not name.endswith("ForCausalLM") or name.startswith("Peft") or "input_ids" not in keywords
        ):  # PEFT's passes on to the model's
            return
        if rank is not None and (not torch.distributed.is_initialized() or torch.distributed.get_rank() != rank):
            return
        passes += module.training
        if passes >= first_pass and len(keywords["input_ids"]) > (rows if passes < last_pass else 0):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    hook = torch.nn.Module.__call__

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        refuse(self, arguments, keywords)
        return hook(self, *arguments, **keywords)

    torch.nn.Module.__call__ = call


def run(rows: int, first_pass: int, last_pass: int | None, rank: int | None, arguments: list[str]) -> int:
    limit(rows, first_pass, math.inf if last_pass is None else last_pass, rank)
    return main(arguments)
