"""The command on a device that has memory for only so many rows of a forward pass: what a small GPU does, without one.

python -m tests.flow.short_of_memory ROWS FIRST_PASS run SPEC…      rows that fit, from which training pass on
"""

from __future__ import annotations

import sys
from typing import Any

from job.__main__ import main


def limit(rows: int, first_pass: int) -> None:
    """Makes every whole-model pass with more rows fail as PyTorch's allocator does."""
    import torch

    passes = 0

    def refuse(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        nonlocal passes
        name = type(module).__name__
        if not name.endswith("ForCausalLM") or name.startswith("Peft") or "input_ids" not in keywords:  # PEFT's passes on to the model's
            return
        passes += module.training
        if passes >= first_pass and len(keywords["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    hook = torch.nn.Module.__call__

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        refuse(self, arguments, keywords)
        return hook(self, *arguments, **keywords)

    torch.nn.Module.__call__ = call


def run(rows: int, first_pass: int, arguments: list[str]) -> int:
    limit(rows, first_pass)
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
