"""Prepared rows on disk, for a process that did not prepare them.

FOLDER/train/, held_out/      the sequences, as `datasets` stores them: memory-mapped again
FOLDER/prepared.json          everything else but the tokenizer, which the model's folder has
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.data.build import Prepared
from job.data.figures import DataReport
from job.data.probes import TemplateProbe
from job.data.questions import Question
from job.data.tokenizer import load_tokenizer
from job.errors import Fault, JobError
from job.host.records import build, encode

RECORD, TRAIN, HELD_OUT = "prepared.json", "train", "held_out"


@dataclass(frozen=True)
class _Record:
    digest: str
    template: str
    probes: tuple[TemplateProbe, ...]
    questions: list[Question]
    exact_match: list[Question]
    report: DataReport
    special_tokens: dict[str, str]
    special_ids: list[int]


def save(prepared: Prepared, folder: Path) -> Path:
    """Writes everything that `reopen` needs below `folder`, which is made."""
    prepared.train.save_to_disk(folder / TRAIN)
    if prepared.held_out is not None:
        prepared.held_out.save_to_disk(folder / HELD_OUT)
    record = _Record(
        prepared.digest,
        prepared.template,
        prepared.probes,
        prepared.questions,
        prepared.exact_match,
        prepared.report,
        _special_tokens(prepared.tokenizer),
        prepared.tokenizer.all_special_ids,
    )
    (folder / RECORD).write_bytes(encode(record))
    return folder


def reopen(folder: Path, model_dir: Path) -> Prepared:
    """What `save` was given. Raises `JobError` where the tokenizer of `model_dir` is no longer the one it was."""
    from datasets import load_from_disk

    record: _Record = build(_Record, json.loads((folder / RECORD).read_bytes()))
    held_out = folder / HELD_OUT
    return Prepared(
        digest=record.digest,
        train=load_from_disk(str(folder / TRAIN)),
        held_out=load_from_disk(str(held_out)) if held_out.exists() else None,
        tokenizer=_tokenizer(record, model_dir),
        template=record.template,
        probes=record.probes,
        questions=record.questions,
        exact_match=record.exact_match,
        report=record.report,
    )


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    """By their names, such as eos_token: the data stage gives some to the model's own tokenizer."""
    named: Mapping[str, Any] = tokenizer.special_tokens_map
    return {name: str(token) for name, token in named.items() if isinstance(getattr(tokenizer, name, None), str)}


def _tokenizer(record: _Record, model_dir: Path) -> Any:
    tokenizer = load_tokenizer(model_dir)
    if record.template:
        tokenizer.chat_template = record.template
    for name, token in record.special_tokens.items():
        if getattr(tokenizer, name) != token:
            setattr(tokenizer, name, token)
    if tokenizer.all_special_ids != record.special_ids:
        raise JobError(
            Fault(
                f"{model_dir}: its tokenizer is not the one that the rows were prepared with",
                found=f"special ids {tokenizer.all_special_ids}",
                expected=f"{record.special_ids}",
            )
        )
    return tokenizer
