"""Odds-ratio preference optimisation: the chosen answer is learned, and made likelier than the rejected one, without a
reference.

The first half is TRL's, which learns the prompts of the chosen answers as well.
"""

from __future__ import annotations

from typing import Any

from job.training.methods.pairs import (
    MARGINS,
    for_made_rows,
    loss_of_sides,
    mean_loss,
    require_settings,
    side_by_side,
)
from job.training.methods.record import PAIRS, HeldOut, Method, Rewards


def _trainer_classes() -> tuple[type, type]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOConfig, for_made_rows(ORPOTrainer)


def _arguments(spec: Any) -> dict[str, Any]:
    return {
        "beta": spec.training.orpo.beta,
        "disable_dropout": not (spec.lora and spec.lora.dropout),
        "max_length": spec.model.max_seq_length,
        "max_completion_length": None,
        "padding_value": None,
        "generate_during_eval": False,
        "dataset_num_proc": None,
        "remove_unused_columns": False,  # our own collator reads ours
    }


def _check(trainer: Any, spec: Any) -> None:
    require_settings("orpo", {"beta": trainer.beta}, {"beta": spec.training.orpo.beta})


def _reward(settings: Any, log_probability: float, _: float, tokens: int) -> float:
    return float(settings.beta * log_probability / tokens)


ORPO = Method(
    name="orpo",
    title="odds-ratio preference optimisation (ORPO)",
    formats=("preference",),
    columns=PAIRS,
    trainer_classes=_trainer_classes,
    arguments=_arguments,
    check=_check,
    collator=side_by_side,
    held_out=HeldOut("held_out_preference_loss", lambda *given: mean_loss(loss_of_sides, *given)),
    rewards=Rewards(_reward, by_reference=False),
    curves=MARGINS,
    learning_rate=8e-6,
    sequences=2,
)
