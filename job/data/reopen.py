"""Prepared rows on disk, for a process that did not prepare them, and trains on them.

FOLDER/train/, held_out/, general/   the sequences, as `datasets` stores them: memory-mapped again
FOLDER/prepared.json          everything else but the tokenizer, which the model's folder has
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from job.data.build import Prepared
from job.data.tokenizer import load_tokenizer
from job.errors import JobError
from job.host.records import build, encode

RECORD, TOKENIZER = "prepared.json", "tokenizer"
SEQUENCES = ("train", "held_out", "general")
APART = (*SEQUENCES, TOKENIZER)
RECORDED = [field.name for field in dataclasses.fields(Prepared) if field.name not in APART]


def save(prepared: Prepared, folder: Path) -> Path:
    """Writes everything that `reopen` needs below `folder`, which is made."""
    for name in SEQUENCES:
        if (rows := getattr(prepared, name)) is not None:
            rows.save_to_disk(folder / name)
    tokenizer = {
        "special_tokens": _special_tokens(prepared.tokenizer),
        "special_ids": prepared.tokenizer.all_special_ids,
    }
    record = {name: getattr(prepared, name) for name in RECORDED} | {TOKENIZER: tokenizer}
    (folder / RECORD).write_bytes(encode(record))
    return folder


def reopen(folder: Path, model_dir: Path) -> Prepared:
    """What `save` was given. Raises `JobError` where the tokenizer of `model_dir` is no longer the one it was."""
    from datasets import load_from_disk

    record, hints = json.loads((folder / RECORD).read_bytes()), typing.get_type_hints(Prepared)
    train, *beside = (folder / name for name in SEQUENCES)
    held_out, general = (load_from_disk(str(path)) if path.exists() else None for path in beside)
    return Prepared(
        train=load_from_disk(str(train)),
        held_out=held_out,
        general=general,
        tokenizer=_tokenizer(record["template"], record[TOKENIZER], model_dir),
        **{name: build(hints[name], record[name]) for name in RECORDED},
    )


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    """By their names, such as eos_token: the data stage gives some to the model's own tokenizer."""
    named: Mapping[str, Any] = tokenizer.special_tokens_map
    return {name: str(token) for name, token in named.items() if isinstance(getattr(tokenizer, name, None), str)}


def _tokenizer(template: str, record: Mapping[str, Any], model_dir: Path) -> Any:
    tokenizer = load_tokenizer(model_dir)
    if template:
        tokenizer.chat_template = template
    for name, token in record["special_tokens"].items():
        if getattr(tokenizer, name) != token:
            setattr(tokenizer, name, token)
    if tokenizer.all_special_ids != record["special_ids"]:
        raise JobError(
            f"{model_dir}: its tokenizer is not the one that the rows were prepared with",
            found=f"special ids {tokenizer.all_special_ids}",
            expected=f"{record['special_ids']}",
        )
    return tokenizer
