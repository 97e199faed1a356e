"""One row's logits as the training process saw them, for others to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PROBE_TOKENS = 64


def write_probe(model: Any, row: dict[str, list[int]], path: Path) -> None:
    """Stores `input_ids` (1, T) and fp32 `logits` (T, vocabulary) of the trained model for one row of T <= 64 tokens.

    Whoever loads the adapter elsewhere can compare their logits with those the training process saw.
    """
    import torch
    from safetensors.torch import save_file

    ids = torch.tensor([row["input_ids"][:PROBE_TOKENS]], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    save_file({"input_ids": ids.cpu().contiguous(), "logits": logits.float().cpu().contiguous()}, path)
