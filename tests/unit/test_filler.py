"""Packed batches of a round number of tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from job.training.callbacks import TokenCounter
from job.training.filler import MULTIPLE, fill

PAD = 7


def packed(*lengths: int) -> dict[str, Any]:
    """A row of that many pieces, whose tokens are 100 and more."""
    ids = [100 + number for number in range(sum(lengths))]
    return {"input_ids": ids, "labels": list(ids), "seq_lengths": list(lengths)}


@pytest.mark.parametrize(("rows", "filler"), [([packed(30, 20), packed(13)], 1), ([packed(64)], 64), ([packed(60, 50)], 18)])
def test_batches_are_filled_up_with_what_nobody_learns_or_sees(rows: list[dict[str, Any]], filler: int) -> None:
    trainer = SimpleNamespace(
        data_collator=DataCollatorForLanguageModeling(pad_token_id=PAD, padding_free=True), training_step=lambda model, inputs: None
    )
    plain = trainer.data_collator(rows)
    fill(trainer, PAD)
    batch = trainer.data_collator(rows)
    tokens = plain["input_ids"].shape[1]
    assert batch["input_ids"].shape[1] % MULTIPLE == 0
    assert batch["input_ids"].shape[1] - tokens == filler
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(batch[name][:, :tokens], plain[name]), name
    assert batch["input_ids"][0, tokens:].tolist() == [PAD] * filler
    assert batch["labels"][0, tokens:].tolist() == [-100] * filler
    assert batch["position_ids"][0, tokens:].tolist() == list(range(filler)), "a piece of its own: its positions begin anew"
    lengths = [length for row in rows for length in row["seq_lengths"]]
    counter = TokenCounter(trainer, filled=True)
    trainer.training_step(None, batch | {"packed_seq_lengths": torch.tensor([*lengths, filler])})
    assert counter.count() == tokens
