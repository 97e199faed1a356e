"""Rows as the model will read them: with its own tokenizer and chat template, where those can be had."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from job.data.figures import sizes
from job.data.templates import POINTER as TEMPLATE
from job.errors import InputError
from job.init.look import LOOKED, Looked
from job.preview.light import without_torch
from job.report.samples import first_samples
from job.source import fetch_model_config
from job.source.model_files import CONFIG, read_object
from job.spec import JobSpec

FOR_BASE_MODELS = "chatml"
# A person waits: what the Hub does not answer at once is not rendered.
SHORT_WAITS = {"TUNEJOB_HUB_PAUSE_SECONDS": "0.02", "TUNEJOB_HUB_PATIENCE_SECONDS": "5"}


@dataclass(frozen=True)
class KnownModel:
    """What is known of the model: `folder` has its tokenizer, `parameters` and `positions` are None where unknown."""

    folder: Path
    parameters: int | None
    positions: int | None


@dataclass(frozen=True)
class RenderedRows:
    """`samples`: each with a head line. `longest_learned`: the most tokens that are learned of a row.
    `chat_template`: the one of the spec with which they were made.
    """

    samples: tuple[str, ...]
    longest_tokens: int
    longest_learned: int
    chat_template: str


def known_model(source: str, workdir: Path, alone: bool) -> KnownModel:
    """What can be had of a model without its weights; `alone`: nothing else runs here. Raises what fetching raises."""
    for name, value in SHORT_WAITS.items():
        os.environ.setdefault(name, value)
    with without_torch(alone):
        model = fetch_model_config(source, workdir)
    positions = read_object(model.path / CONFIG).get("max_position_embeddings")
    parameters = None if model.quantised else model.weight_bytes // 2  # files of 16-bit weights, as nearly all are
    return KnownModel(model.path, parameters, positions if type(positions) is int and positions > 0 else None)


def render(spec: JobSpec, looked: Looked, folder: Path, workdir: Path) -> RenderedRows:
    """The first rows through the data stage; a base model without a chat template gets one of ours. Raises likewise."""
    try:
        return _render(spec, looked, folder, workdir)
    except InputError as error:
        if not looked.fit.is_chat or error.faults[0].where != TEMPLATE or spec.data.chat_template != "model":
            raise
    return _render(replace(spec, data=replace(spec.data, chat_template=FOR_BASE_MODELS)), looked, folder, workdir)


def _render(spec: JobSpec, looked: Looked, folder: Path, workdir: Path) -> RenderedRows:
    from job.data.build import build_dataset

    first = replace(spec.data.train[0], limit=LOOKED)
    data = replace(spec.data, held_out=False, shuffle=False, max_untrained_fraction=1.0)
    asked = replace(spec, data=data, evaluation=replace(spec.evaluation, prompts=(), exact_match_rows=0))
    prepared = build_dataset(asked, [replace(looked.source, spec=first)], None, folder, workdir, lambda *_: None)
    answers = prepared.train.select_columns(["labels"])  # of a pair, the chosen one
    longest, learned = prepared.report.train["longest_tokens"], int(sizes(answers)[1].max())
    return RenderedRows(first_samples(prepared), longest, learned, spec.data.chat_template)


def estimated_tokens(looked: Looked) -> int:
    """Of the longest row, where there is no tokenizer: three bytes each, more than most texts need."""

    def texts(value: Any) -> int:
        if isinstance(value, str):
            return len(value.encode("utf-8", "replace"))
        if isinstance(value, dict | list):
            return sum(map(texts, value.values() if isinstance(value, dict) else value))
        return 0

    return max(map(texts, looked.rows)) // 3 + 32
