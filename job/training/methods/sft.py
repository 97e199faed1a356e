"""Supervised fine-tuning: the next token of the learned parts of each row."""

from __future__ import annotations

from typing import Any

from job.errors import CapacityError
from job.training.methods.record import TOKENS, Method


def _arguments(spec: Any) -> dict[str, Any]:
    return {
        "shuffle_dataset": False,  # the data stage has shuffled
        "max_length": spec.model.max_seq_length,
        "packing": spec.data.packing,
        "packing_strategy": "bfd",
        "padding_free": False,  # `join_rows` sets it where it is possible
        "eval_packing": False,
        "completion_only_loss": False,  # labels are ours
        "assistant_only_loss": False,
        "dataset_num_proc": None,
        "dataset_kwargs": {"skip_prepare_dataset": not spec.data.packing},  # rows are cut and masked already
    }


def _joins(spec: Any) -> bool:
    return bool(spec.model.backend == "unsloth" and spec.model.precision != "full")


def _check_packing(trainer: Any, spec: Any) -> None:
    """Engines switch packing off with a warning; the read-back value decides."""
    wanted, found = spec.data.packing, bool(getattr(trainer.args, "packing", False))
    if found != wanted:
        raise CapacityError(
            "the engine did not pack the rows",
            where="/data/packing",
            found=str(found).lower(),
            expected=str(wanted).lower(),
            hint="This model or device cannot keep packed rows apart: set packing to false",
        )


SFT = Method(
    name="sft",
    title="supervised fine-tuning",
    formats=("messages", "sharegpt", "alpaca", "prompt_completion", "text", "template"),
    columns=TOKENS,
    trl_name="SFT",
    arguments=_arguments,
    check=_check_packing,
    kernel_loss=True,
    loss_of_step=True,
    packs=True,
    joins=_joins,
)
