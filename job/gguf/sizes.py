"""What GGUF files of a model will look like, before it is trained: whether they can be made, and how large they get."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from job.errors import GateError, InputError
from job.gguf.convert import outline
from job.gguf.header import read_header
from job.gguf.native import require_loadable
from job.gguf.quantise import planned_bytes


@dataclass(frozen=True)
class Planned:
    """Bytes of each type."""

    bytes: dict[str, int]


def plan(model: Path, scratch: Path, types: list[str], with_imatrix: bool) -> Planned:
    """What they will have. Raises `InputError` where llama.cpp does not know the architecture or the tokenizer, its
    converter fails on the model, or it would not open what the converter makes of it.
    """
    hollow = scratch / "outline.gguf"
    try:
        outline(model, hollow)
        require_loadable(hollow, hollow.name)
    except GateError as refusal:
        raise _cannot(refusal) from refusal
    header = read_header(hollow, hollow.name)
    sizes = {name: planned_bytes(hollow, header, name, with_imatrix) for name in types}
    hollow.unlink()
    return Planned(sizes)


def _cannot(refusal: GateError) -> InputError:
    """The same before anything is trained: then it is the model that is wrong, not what was made of it."""
    return InputError(
        "llama.cpp cannot make a GGUF of this model, or not open it",
        where="/model/source",
        found=refusal.faults[0].found,
        expected="a model that llama.cpp supports, as its files describe it",
        hint="Remove the GGUF exports",
    )
