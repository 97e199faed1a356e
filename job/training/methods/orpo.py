"""Odds-ratio preference optimisation: the chosen answer is learned, and made likelier than the rejected one, without a
reference.

The first half is TRL's, which learns the prompts of the chosen answers as well.
"""

from __future__ import annotations

from typing import Any

from job.training.methods.pairs import (
    MARGINS,
    arguments_of_sides,
    for_made_rows,
    loss_of_sides,
    mean_loss,
    require_settings,
    reward_of_sides,
    side_by_side,
)
from job.training.methods.record import PAIRS, HeldOut, Method, Rewards


def _arguments(spec: Any) -> dict[str, Any]:
    return arguments_of_sides(spec) | {"beta": spec.training.orpo.beta, "padding_value": None}


def _check(trainer: Any, spec: Any) -> None:
    require_settings("orpo", {"beta": trainer.beta}, {"beta": spec.training.orpo.beta})


ORPO = Method(
    name="orpo",
    title="odds-ratio preference optimisation (ORPO)",
    formats=("preference",),
    columns=PAIRS,
    trl_name="ORPO",
    trl_module="trl.experimental.orpo",
    own_trainer=for_made_rows,
    arguments=_arguments,
    check=_check,
    collator=side_by_side,
    held_out=HeldOut("held_out_preference_loss", lambda *given: mean_loss(loss_of_sides, *given)),
    rewards=Rewards(reward_of_sides, by_reference=False),
    curves=MARGINS,
    learning_rate=8e-6,
    sequences=2,
)
