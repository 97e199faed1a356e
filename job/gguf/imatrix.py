"""Importance matrices as llama.cpp's own tool stores them: sums of squared inputs and how many were summed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SUMS, COUNTS = ".in_sum2", ".counts"


def load_imatrix(path: Path) -> dict[str, Any]:
    """GGUF tensor name → float32 array of mean squared inputs (channels of all its matrices, one after the other)."""
    from gguf import GGUFReader

    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    sums = {name.removesuffix(SUMS): data for name, data in tensors.items() if name.endswith(SUMS)}
    return {
        name: (data / tensors[name + COUNTS].reshape(-1, 1)).astype("float32").ravel() for name, data in sums.items()
    }
