"""The end of a run on a terminal: what was measured, three answers, where things are, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from job.report.figures import aligned, compared, measured, since
from job.report.kept import is_expected

SHOWN_ANSWERS = 3
SHOWN_CHARACTERS = 300
FOLDERS = {
    "adapter/": "the adapter, for PEFT",
    "merged/": "whole 16-bit weights, for transformers and vLLM",
    "merged_4bit/": "whole weights in 4 bits",
    "gguf/": "for llama.cpp and Ollama",
    "README.md": "the model card: how to load each of them",
    "report/report.html": "everything, to look at in a browser",
    "report/summary.md": "every figure",
}


def ending(
    output: str, keys: Sequence[str], stats: Mapping[str, Any], answers: Sequence[Mapping[str, Any]],
    width: int | None = None,
) -> Iterator[str]:  # fmt: skip
    """Lines, tables of at most `width` columns. `keys`: of the stored files. `answers`: as in answers.json."""
    if figures := measured(stats):
        yield from ("", *aligned(figures, width))
    if differences := compared(stats):
        yield from ("", *aligned(differences, width), f"{differences.note.partition(':')[0]}.")
    if before := since(stats):
        yield from ("", *aligned(before, width), before.note)
    for answer in answers[:SHOWN_ANSWERS]:
        yield from ("", shortened(answer["prompt"]))
        yield f"  base:      {shortened(answer['base'])}"
        yield f"  tuned:     {shortened(answer['trained'])}"
        yield f"  expected:  {_expected(answer)}"
    yield from ("", f"In {output}:")
    for folder, what in FOLDERS.items():
        if any(key.startswith(folder) for key in keys):
            yield f"  {folder:<19}{what}"
    place = shlex.quote(output)
    yield from ("", "Next:", f"  tunejob chat {place}      ask it", f"  tunejob report {place}    every figure")


def _expected(answer: Mapping[str, Any]) -> str:
    equal = is_expected(answer["trained"], answer.get("reference"))
    if equal is None:
        return "nothing: this prompt has no reference"
    return f"{shortened(answer['reference'])}  ({'tuned is equal' if equal else 'tuned is not equal'})"


def shortened(text: str) -> str:
    """On one line, and not at any length."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + "…"
