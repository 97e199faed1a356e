"""Modelfiles for Ollama: the GGUF, the trained chat template in Ollama's language, and where an answer stops.

Ollama's parser drops characters that cannot be printed and does not know escapes outside the template, so nothing is
written that it would read as something else. Source: Ollama's Modelfile reference, and its parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from job.data.build import TemplateProbe
from job.errors import GateError
from job.publish.ollama.ollama_template import translate

FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\.gguf")
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
RAW = "{{ .Prompt }}"  # models of raw text go on from the prompt as it is
TEMPLATE_OF_OLLAMA = "# The chat template cannot be written in Ollama's language; Ollama takes the one in the GGUF, or what it finds most like it.\n"  # noqa: E501


def write_modelfiles(
    folder: Path, files: Mapping[str, str], probes: Sequence[TemplateProbe], begin: str, stop_tokens: Sequence[str]
) -> list[Path]:
    """Writes `Modelfile.<QUANT>` for each of `files` (quant label → name of its GGUF in `folder`, the best first) and
    `Modelfile` for the first; returns their paths.

    `probes`: conversations through the trained template, none for raw text. `begin`: the token that llama.cpp puts
    before every prompt, "" for none. `stop_tokens`: texts of the tokens that end an answer.
    Raises `GateError` for a file name that a Modelfile cannot hold.
    """
    body = _template(probes, begin) + "".join(
        f'PARAMETER stop "{token}"\n' for token in stop_tokens if _is_readable(token)
    )
    texts = {f"Modelfile.{label}": _source(name) + body for label, name in files.items()}
    if texts:
        texts = {"Modelfile": next(iter(texts.values())), **texts}
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    return [folder / name for name in texts]


def _source(name: str) -> str:
    if not FILE.fullmatch(name):
        raise GateError(
            "a Modelfile cannot name this file", found=ascii(name), expected="letters, digits, '.', '_', '+', '-'"
        )
    whole = SHARD.sub("", name)
    joining = f"# Join the parts first: llama-gguf-split --merge {name} {whole}\n" if whole != name else ""
    return f"{joining}FROM ./{whole}\n"


def _template(probes: Sequence[TemplateProbe], begin: str) -> str:
    if not probes:
        return f'TEMPLATE """{RAW}"""\n'
    found = translate(probes, begin)
    if found is None:
        return TEMPLATE_OF_OLLAMA
    notes = "".join(f"#   {difference}\n" for difference in found.differences)
    return ("# Rendered otherwise than in training:\n" + notes if notes else "") + f'TEMPLATE """{found.text}"""\n'


def _is_readable(token: str) -> bool:
    """Whether the parser gives this text back; what it would change is better left to the GGUF's own end tokens."""
    return bool(token) and token.isprintable() and not token.startswith('""')
