"""Simple preference optimisation: the chosen answer is to be likelier than the rejected one by a margin, by the mean
log-probability of their tokens, without a reference.
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
    options = spec.training.simpo
    return arguments_of_sides(spec) | {
        "loss_type": "simpo",
        "beta": options.beta,
        "simpo_gamma": options.gamma,
        "cpo_alpha": options.sft_weight,
        "alpha": 0.0,
        "label_smoothing": 0.0,
    }


def _check(trainer: Any, spec: Any) -> None:
    found = {"beta": trainer.beta, "gamma": trainer.simpo_gamma, "sft_weight": trainer.cpo_alpha}
    require_settings("simpo", found, vars(spec.training.simpo))


SIMPO = Method(
    name="simpo",
    title="simple preference optimisation (SimPO)",
    formats=("preference",),
    columns=PAIRS,
    trl_name="CPO",
    trl_module="trl.experimental.cpo",
    own_trainer=for_made_rows,
    arguments=_arguments,
    check=_check,
    collator=side_by_side,
    held_out=HeldOut("held_out_preference_loss", lambda *given: mean_loss(loss_of_sides, *given)),
    rewards=Rewards(reward_of_sides, by_reference=False),
    curves=MARGINS,
    learning_rate=5e-6,
    sequences=2,
)
