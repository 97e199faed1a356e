"""What methods that learn from pairs share: how rows become a batch, and the loss of held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from job.host.micro_batch import in_halves
from job.training.methods.record import Row

NOT_LEARNED = -100  # a label, as PyTorch's cross entropy has it
CHOSEN, REJECTED = "", "rejected_"


def collated(pad: int) -> Callable[[list[Row]], dict[str, Any]]:
    """Batches as TRL's DPO has them: the chosen answers, then the rejected ones, padded on the right with `pad`."""

    def collate(rows: list[Row]) -> dict[str, Any]:
        parts = [(row, part) for part in (CHOSEN, REJECTED) for row in rows]
        return padded([(row[f"{part}input_ids"], row[f"{part}labels"]) for row, part in parts], pad)

    return collate


def padded(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> dict[str, Any]:
    """Ids and labels as tensors of ids, of what is no padding, and of what is learned."""
    import torch

    width = max(len(ids) for ids, _ in sequences)

    def tensor(lists: list[list[int]], filler: int) -> Any:
        return torch.tensor([row + [filler] * (width - len(row)) for row in lists])

    return {
        "input_ids": tensor([list(ids) for ids, _ in sequences], pad),
        "attention_mask": tensor([[1] * len(ids) for ids, _ in sequences], 0),
        "completion_mask": tensor([[int(label != NOT_LEARNED) for label in labels] for _, labels in sequences], 0),
    }


def mean_loss(trainer: Any, rows: Any, rows_at_once: int) -> float:
    """Of held-out rows, by the trainer's own loss, which is a mean over a batch; the figures that it notes of them are
    forgotten.
    """
    import torch

    def measured(batch: list[Row]) -> list[float]:
        inputs = trainer._prepare_inputs(trainer.data_collator(batch))
        return [float(trainer.compute_loss(trainer.model, inputs)) * len(batch)]

    losses: list[float] = []
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for start in range(0, len(rows), rows_at_once):
            losses += in_halves([rows[i] for i in range(start, min(start + rows_at_once, len(rows)))], measured)
    trainer._metrics["eval"].clear()
    return sum(losses) / len(rows)
