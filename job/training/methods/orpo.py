"""Odds-ratio preference optimisation: the chosen answer is learned, and made likelier than the rejected one, without a
reference.

The first half is TRL's, which learns the prompts of the chosen answers as well.
"""

from __future__ import annotations

from typing import Any

from job.training.methods.pairs import MARGINS, mean_loss, require_settings, side_by_side
from job.training.methods.record import PAIRS, HeldOut, Method, Rewards


def _trainer_classes() -> tuple[type, type]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class PairsTrainer(ORPOTrainer):  # type: ignore[misc]
        """Rows are tokens already."""

        def __init__(self, train_dataset: Any, **given: Any) -> None:
            super().__init__(train_dataset=_Made(train_dataset), **given)
            self.train_dataset = train_dataset

    return ORPOConfig, PairsTrainer


class _Made:
    """A data set to which nothing more is done."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def map(self, *_: Any, **__: Any) -> _Made:
        return self


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


def _loss(trainer: Any, inputs: dict[str, Any]) -> Any:
    return trainer.get_batch_loss_metrics(trainer.model, inputs, "eval")[0]


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
    held_out=HeldOut("held_out_preference_loss", lambda *given: mean_loss(_loss, *given)),
    rewards=Rewards(_reward, by_reference=False),
    curves=MARGINS,
    learning_rate=8e-6,
    sequences=2,
)
