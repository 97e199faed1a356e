"""Unsloth's own masks of rows of ids, in a forked process: its function is below `unsloth` and needs torch alone."""

from __future__ import annotations

import json
import os
from pathlib import Path


def main(tokenizer_dir: str, ids: str, labels: str) -> int:
    """Masks the rows of the file `ids` on ChatML and writes them to `labels`, both lists of lists in JSON."""
    from transformers import AutoTokenizer

    os.environ["UNSLOTH_IS_PRESENT"] = "1"  # as `unsloth` sets it before it imports this one
    from unsloth_zoo.dataset_utils import train_on_responses_only

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    mask = train_on_responses_only(
        None, "<|im_start|>user\n", "<|im_start|>assistant\n", tokenizer=tokenizer, return_function=True
    )
    rows = [mask({"input_ids": [row]})["labels"][0] for row in json.loads(Path(ids).read_text())]
    Path(labels).write_text(json.dumps([row if isinstance(row, list) else row.tolist() for row in rows]))
    return 0
