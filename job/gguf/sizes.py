"""What GGUF files of a model will look like, before it is trained: whether they can be made, and how large they get."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from job.errors import GateError, InputError
from job.gguf.convert import outline
from job.gguf.header import Header, read_header
from job.gguf.native import require_loadable
from job.gguf.quantise import planned_bytes

CONFIG, SLIDING = "config.json", "sliding_attention"


@dataclass(frozen=True)
class Planned:
    """Bytes of each type."""

    bytes: dict[str, int]


def plan(model: Path, scratch: Path, types: list[str], with_imatrix: bool, longest_tokens: int = 0) -> Planned:
    """What they will have. Raises `InputError` where llama.cpp does not know the architecture or the tokenizer, its
    converter fails on the model, it would not open what the converter makes of it, or would read rows otherwise.
    """
    hollow = scratch / "outline.gguf"
    try:
        outline(model, hollow)
        require_loadable(hollow, hollow.name)
    except GateError as refusal:
        raise _cannot(refusal) from refusal
    header = read_header(hollow, hollow.name)
    _require_window(model, header, longest_tokens)
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


def _require_window(model: Path, header: Header, longest_tokens: int) -> None:
    """Some of llama.cpp's architectures have no sliding window (Mistral's): there tokens beyond it are seen, too."""
    config = json.loads((model / CONFIG).read_bytes())
    window, kinds = config.get("sliding_window"), config.get("layer_types") or [SLIDING]
    slides = isinstance(window, int) and config.get("use_sliding_window") is not False and SLIDING in kinds
    kept = any(name.endswith(".attention.sliding_window") for name in header.metadata)
    if slides and not kept and longest_tokens > window:
        raise InputError(
            "llama.cpp gives this model no sliding window, so that a GGUF would read long rows otherwise",
            where="/model/max_seq_length",
            found=f"rows of up to {longest_tokens} tokens",
            expected=f"at most {window}, the window of the model",
            hint="Set it to that, or remove the GGUF exports",
        )
