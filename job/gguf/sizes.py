"""What GGUF files of a model will look like, before it is trained: whether they can be made, and how large they get."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from job.gguf.convert import outline
from job.gguf.header import read_header
from job.gguf.quantise import planned_bytes


@dataclass(frozen=True)
class Planned:
    """Bytes of each type."""

    bytes: dict[str, int]


def plan(model: Path, scratch: Path, types: list[str], with_imatrix: bool) -> Planned:
    """What they will have. Raises `InputError` where llama.cpp does not know the architecture or the tokenizer."""
    hollow = scratch / "outline.gguf"
    outline(model, hollow)
    header = read_header(hollow, hollow.name)
    sizes = {name: planned_bytes(hollow, header, name, with_imatrix) for name in types}
    hollow.unlink()
    return Planned(sizes)
