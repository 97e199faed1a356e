"""Packed rows in forward passes of a round number of tokens: GPUs are slower at others."""

from __future__ import annotations

from typing import Any

MULTIPLE = 64  # tokens


class Filled:
    """A collator of packed rows, with one more piece in each batch: padding that nobody sees or learns, 1 to 64 tokens
    of it, which makes their number a multiple of 64.
    """

    def __init__(self, collate: Any, pad_id: int) -> None:
        self._collate, self._pad_id = collate, pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        count = MULTIPLE - sum(len(row["input_ids"]) for row in rows) % MULTIPLE
        filler = {"input_ids": [self._pad_id] * count, "labels": [-100] * count, "seq_lengths": [count]}
        batch: dict[str, Any] = self._collate([*rows, filler])
        return batch


def fill(trainer: Any, pad_id: int) -> None:
    """Has `trainer`, which packs, take its batches that way."""
    trainer.data_collator = Filled(trainer.data_collator, pad_id)


def filler_tokens(inputs: dict[str, Any]) -> Any:
    """Of a batch that is filled: its last piece, on whatever device."""
    return inputs["packed_seq_lengths"][-1]
