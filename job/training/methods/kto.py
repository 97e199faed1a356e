"""Kahneman-Tversky optimisation: answers that are called good become likelier, those called bad less likely, without
going far from the base.

How far the model has gone is estimated on prompts with the answers of others in the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from job.training.methods.pairs import CHOSEN, NOT_LEARNED, mean_loss, padded, require_settings, sequence
from job.training.methods.record import LABELLED, HeldOut, Method, Rewards, Row
from job.training.methods.reference_model import loss_of_batch, require_the_base, reward, without_copies


def _collator(pad: int, longest: int) -> Callable[[list[Row]], dict[str, Any]]:
    """Batches as TRL's KTO has them; each prompt also with the answer of the row before it, the first with the last's,
    cut to the `longest` sequence.
    """

    def collate(rows: list[Row]) -> dict[str, Any]:
        import torch

        sequences = [sequence(row, CHOSEN) for row in rows]
        begins = [next(i for i, label in enumerate(labels) if label != NOT_LEARNED) for _, labels in sequences]
        found = _masked(sequences, pad, "")
        others = [
            tuple(
                (own[:begin] + other[before:])[:longest]
                for own, other in zip(sequences[i], sequences[i - 1], strict=True)
            )
            for i, (begin, before) in enumerate(zip(begins, [begins[-1], *begins[:-1]], strict=True))
        ]
        found |= _masked(others, pad, "KL_")
        return found | {"label": torch.tensor([bool(row["desirable"][0]) for row in rows])}

    return collate


def _masked(sequences: list[Any], pad: int, prefix: str) -> dict[str, Any]:
    found = padded(sequences, pad)
    mask = (found.pop("labels") != NOT_LEARNED).long()
    return {f"{prefix}{name}": tensor for name, tensor in (found | {"completion_mask": mask}).items()}


def _arguments(spec: Any) -> dict[str, Any]:
    options = spec.training.kto
    return {
        "loss_type": "kto",
        "beta": options.beta,
        "desirable_weight": options.desirable_weight,
        "undesirable_weight": options.undesirable_weight,
        "precompute_ref_log_probs": False,
        "sync_ref_model": False,
        "disable_dropout": not spec.lora.dropout,
        "max_length": spec.model.max_seq_length,
        "pad_to_multiple_of": None,
        "dataset_num_proc": None,
        "activation_offloading": False,
        "remove_unused_columns": False,  # our own collator reads ours
        "train_sampling_strategy": "sequential",  # which TRL insists on; the data stage has shuffled
    }


def _check(trainer: Any, spec: Any) -> None:
    options = vars(spec.training.kto)
    require_settings("kto", {name: getattr(trainer, name) for name in options}, options)
    require_the_base(trainer)


def _held_out_loss(trainer: Any, rows: Any, _: int) -> float:
    """In batches like those of the training, by which the distance is estimated."""
    return mean_loss(loss_of_batch, trainer, rows, trainer.args.per_device_train_batch_size)


KTO = Method(
    name="kto",
    title="Kahneman-Tversky optimisation (KTO)",
    formats=("kto",),
    columns=LABELLED,
    trl_name="KTO",
    own_trainer=without_copies,
    arguments=_arguments,
    check=_check,
    collator=_collator,
    held_out=HeldOut("held_out_preference_loss", _held_out_loss),
    rewards=Rewards(reward, by_reference=True),
    curves={"rewards/margins": "reward_margin", "kl": "kl"},
    learning_rate=5e-6,
    needs_adapter=True,
    least_rows=2,
    further_passes=3,  # of the reference, and of both with the other answers
)
