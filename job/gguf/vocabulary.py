"""What a vocabulary alone shows of a GGUF: whether llama.cpp knows it, and splits text as in training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from job.errors import GateError, InputError
from job.gguf.check import special_faults, text_faults, token_faults
from job.gguf.convert import write_vocabulary
from job.gguf.expected import Expected
from job.gguf.header import read_header
from job.gguf.native import opened

KEY = "the vocabulary as GGUF"


@dataclass(frozen=True)
class Rehearsed:
    """`skipped`: why nothing was tried where a converter cannot do without weights, None where all was as trained."""

    skipped: str | None


def rehearse(model: Path, target: Path, expected: Expected) -> Rehearsed:
    """Makes a GGUF of the config and tokenizer in `model`, without weights, and asks llama.cpp for the trained ids.

    Raises `InputError` where llama.cpp does not know the architecture or the tokenizer, or reads text otherwise. Where
    it was skipped, the plan of the exports decides.
    """
    try:
        write_vocabulary(model, target)
    except InputError:
        raise
    except GateError as error:
        return Rehearsed(error.faults[0].found)
    faults = special_faults(read_header(target, KEY), KEY, expected)
    with opened(target, KEY, vocabulary_only=True) as vocabulary:
        found = [*faults, *token_faults(vocabulary, KEY, expected), *text_faults(vocabulary, KEY, expected.texts)]
    target.unlink()
    if found:
        hint = "Remove the GGUF exports, or tune a model whose tokenizer llama.cpp reads as transformers does"
        raise InputError(
            *(replace(f, message=f"llama.cpp: {f.message}", where="/export/gguf", hint=hint) for f in found)
        )
    return Rehearsed(None)
