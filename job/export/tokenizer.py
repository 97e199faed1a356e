"""The tokenizer that is published: written as it was trained, opened again, and asked for the trained ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from job.data.build import Prepared
from job.errors import Fault, GateError
from job.gguf.expected import Expected, describe_tokenizer
from job.source.model_files import read_object

CONFIG = "tokenizer_config.json"
# What transformers reads of a tokenizer's settings and does not write: without `legacy` a SentencePiece tokenizer
# gives other ids after special tokens.
SETTINGS = ("legacy", "add_bos_token", "add_eos_token", "sp_model_kwargs", "spaces_between_special_tokens")
SENTENCEPIECE = ".model"  # tokenizer.model and the like, which llama.cpp's converter reads, too
COMPARED_ROWS = 8
SHOWN_IDS = 5


def save_tokenizer(tokenizer: Any, base: Path, folder: Path) -> None:
    """Writes `tokenizer` to `folder`, and from `base` what transformers leaves out: SentencePiece model, settings."""
    tokenizer.save_pretrained(folder)
    for path in filter(_is_sentencepiece, base.glob(f"*{SENTENCEPIECE}")):
        shutil.copyfile(path, folder / path.name)
    given = read_object(base / CONFIG) if (base / CONFIG).is_file() else {}
    written = read_object(folder / CONFIG)
    kept = {key: given[key] for key in SETTINGS if key in given and key not in written}
    if kept:
        text = json.dumps(written | kept, indent=2, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", "utf-8")


def _is_sentencepiece(path: Path) -> bool:
    """Whether readers of SentencePiece take it: Llama 3's file of that name is of another kind and misleads them."""
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        return False
    return True


def expected_tokenizer(prepared: Prepared) -> Expected:
    """What the tokenizer of every artefact must be: its facts, and hard texts and rows of the job with their ids."""
    rows = prepared.held_out or prepared.train
    texts = [text_of(prepared.tokenizer, rows[i]["input_ids"]) for i in range(min(len(rows), COMPARED_ROWS))]
    return describe_tokenizer(prepared.tokenizer, [text for text in texts if text is not None])


def text_of(tokenizer: Any, ids: list[int]) -> str | None:
    """A text that becomes these very ids: decoded between special tokens, whose neighbours some decoders set apart by
    a space that was not there, or as a whole. None where neither does, as for a row that was cut within a character.
    """
    special = set(tokenizer.all_special_ids)
    runs = [list(run) for _, run in groupby(ids, key=special.__contains__)]
    for text in ("".join(map(tokenizer.decode, runs)), tokenizer.decode(ids)):
        if tokenizer(text, add_special_tokens=False).input_ids == list(ids):
            return str(text)
    return None


def tokenizer_faults(folder: Path, expected: Expected) -> Iterator[Fault]:
    """What `expected_tokenizer` says and the tokenizer in `folder`, opened as a stranger would, does not do."""
    try:
        found = open_tokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Fault("the tokenizer cannot be opened", where=folder.name, found=f"{type(error).__name__}: {error}")
        return
    opening = found("a").input_ids[:1] == [found.bos_token_id] and found.bos_token_id is not None
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    facts = {name: (getattr(found, name), getattr(expected, name)) for name in special}
    facts |= {
        "opening with the BOS token": (opening, expected.adds_bos),
        "its size": (len(found), expected.tokens),
    }
    for name, (is_now, was) in facts.items():
        if is_now != was:
            yield Fault(
                f"the tokenizer is not the trained one: {name}", where=folder.name, found=str(is_now), expected=str(was)
            )
    for number, text in enumerate(expected.texts):
        ids = found(text.text, add_special_tokens=False).input_ids
        if ids != text.ids:
            at = next((i for i, pair in enumerate(zip(ids, text.ids, strict=False)) if pair[0] != pair[1]), 0)
            yield Fault(
                "the tokenizer gives other ids than in training",
                where=folder.name,
                found=f"text {number} from token {at}: {ids[at : at + SHOWN_IDS]}",
                expected=str(text.ids[at : at + SHOWN_IDS]),
            )
            return


def open_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def require_tokenizer(folder: Path, prepared: Prepared) -> None:
    """Raises `GateError` unless the tokenizer in an artefact's folder, reopened, gives the trained ids."""
    if faults := list(tokenizer_faults(folder, expected_tokenizer(prepared))):
        raise GateError(*faults)
