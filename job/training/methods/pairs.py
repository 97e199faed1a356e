"""What methods that compare answers share: how rows become a batch, the loss of held-out ones, read-back settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from job.errors import CapacityError
from job.host.micro_batch import in_halves
from job.training.methods.record import Row

NOT_LEARNED = -100  # a label, as PyTorch's cross entropy has it
CHOSEN, REJECTED = "", "rejected_"
MARGINS = {"rewards/margins": "reward_margin", "rewards/accuracies": "preference_accuracy"}


def one_after_the_other(pad: int, _: int) -> Callable[[list[Row]], dict[str, Any]]:
    """Batches as TRL's DPO has them: the chosen answers, then the rejected ones, padded on the right with `pad`."""

    def collate(rows: list[Row]) -> dict[str, Any]:
        found = padded([sequence(row, part) for part in (CHOSEN, REJECTED) for row in rows], pad)
        labels = found.pop("labels")
        return found | {"completion_mask": (labels != NOT_LEARNED).long()}

    return collate


def side_by_side(pad: int, _: int) -> Callable[[list[Row]], dict[str, Any]]:
    """Batches as TRL's ORPO has them: tensors of the chosen and of the rejected answers, of a width each."""

    def collate(rows: list[Row]) -> dict[str, Any]:
        sides = {"chosen_": CHOSEN, "rejected_": REJECTED}
        found = {side: padded([sequence(row, part) for row in rows], pad) for side, part in sides.items()}
        return {f"{side}{name}": tensor for side, tensors in found.items() for name, tensor in tensors.items()}

    return collate


def sequence(row: Row, part: str) -> tuple[list[int], list[int]]:
    """Ids and labels of an answer with its prompt."""
    return list(row[f"{part}input_ids"]), list(row[f"{part}labels"])


def padded(sequences: Sequence[tuple[list[int], list[int]]], pad: int) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and `labels` as tensors of [sequences, the longest]."""
    import torch

    width = max(len(ids) for ids, _ in sequences)

    def tensor(lists: list[list[int]], filler: int) -> Any:
        return torch.tensor([row + [filler] * (width - len(row)) for row in lists])

    return {
        "input_ids": tensor([ids for ids, _ in sequences], pad),
        "attention_mask": tensor([[1] * len(ids) for ids, _ in sequences], 0),
        "labels": tensor([labels for _, labels in sequences], NOT_LEARNED),
    }


class _Made:
    """A data set to which nothing more is done."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def map(self, *_: Any, **__: Any) -> _Made:
        return self


def for_made_rows(trainer: type) -> type:
    """`trainer`, one of trl that has pairs side by side, for rows that are tokens already."""

    class Trainer(trainer):  # type: ignore[misc]
        def __init__(self, train_dataset: Any, **given: Any) -> None:
            super().__init__(train_dataset=_Made(train_dataset), **given)
            self.train_dataset = train_dataset

    return Trainer


def arguments_of_sides(spec: Any) -> dict[str, Any]:
    """What such a trainer is given beside the settings of its method."""
    return {
        "disable_dropout": not (spec.lora and spec.lora.dropout),
        "max_length": spec.model.max_seq_length,
        "max_completion_length": None,
        "generate_during_eval": False,
        "dataset_num_proc": None,
        "remove_unused_columns": False,  # our own collator reads ours
    }


def reward_of_sides(settings: Any, log_probability: float, _: float, tokens: int) -> float:
    """Of an answer, without a reference: by the mean of its tokens."""
    return float(settings.beta * log_probability / tokens)


def loss_of_sides(trainer: Any, inputs: dict[str, Any]) -> Any:
    """By such a trainer's own loss; nothing is noted of it."""
    return trainer.get_batch_loss_metrics(trainer.model, inputs, "eval")[0]


def mean_loss(loss: Callable[[Any, Any], Any], trainer: Any, rows: Any, rows_at_once: int) -> float:
    """Of held-out rows, where `loss`, of a trainer and a batch, is a mean over the batch."""
    import torch

    def measured(batch: list[Row]) -> list[float]:
        return [float(loss(trainer, trainer._prepare_inputs(trainer.data_collator(batch)))) * len(batch)]

    losses: list[float] = []
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for start in range(0, len(rows), rows_at_once):
            losses += in_halves([rows[i] for i in range(start, min(start + rows_at_once, len(rows)))], measured)
    return sum(losses) / len(rows)


def require_settings(method: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises `CapacityError` where a trainer, whose code engines replace, has others than the spec's."""
    for name, value in wanted.items():
        if found[name] != value:
            raise CapacityError("the engine trains with another setting than was asked for",
                                where=f"/training/{method}/{name}", found=str(found[name]),
                                expected=str(value))  # fmt: skip
