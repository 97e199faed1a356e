"""What GGUF files of a model will look like, before it is trained: whether they can be made, and how large they get."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from job.gguf.convert import outline
from job.gguf.header import read_header
from job.gguf.quantise import planned_bytes


def plan(model: Path, scratch: Path, types: list[str], with_imatrix: bool) -> dict[str, Any]:
    """Bytes of each type. Raises `InputError` where llama.cpp does not know the architecture or the tokenizer."""
    started = time.monotonic()
    hollow = scratch / "outline.gguf"
    outline(model, hollow)
    header = read_header(hollow, hollow.name)
    sizes = {name: planned_bytes(hollow, header, name, with_imatrix) for name in types}
    hollow.unlink()
    return {"bytes": sizes, "tensors": len(header.tensors), "seconds": time.monotonic() - started}
