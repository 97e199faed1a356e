"""Tokens of each pack that TRL makes of sequences: `main(LENGTHS, MOST)` prints them as JSON."""

from __future__ import annotations

import json


def main(text: str, most: str) -> None:
    from datasets import Dataset
    from trl import pack_dataset

    lengths = json.loads(text)
    rows = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    print(json.dumps([len(ids) for ids in pack_dataset(rows, int(most), "bfd")["input_ids"]]))
