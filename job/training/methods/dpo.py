"""Direct preference optimisation: the chosen answer rather than the rejected one, without going far from the base."""

from __future__ import annotations

from typing import Any

from job.errors import CapacityError, Fault
from job.training.methods.pairs import collated, mean_loss
from job.training.methods.record import PAIRS, HeldOut, Method, Rewards

REFERENCE = "ref"  # the copy of the adapter that trl makes
SFT_TERM = "sft"


def _trainer_classes() -> tuple[type, type]:
    from trl import DPOConfig, DPOTrainer

    from job.training.methods.plain import compute_on_cpus

    class PairsTrainer(DPOTrainer):  # type: ignore[misc]
        """Rows are tokens already, and the reference is the base with the adapter off: a copy of the adapter would be
        what a training that goes on, or begins again in smaller batches, has learned so far.
        """

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            compute_on_cpus(given["args"])
            if REFERENCE in self.model.peft_config:
                self.model.delete_adapter(REFERENCE)

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return DPOConfig, PairsTrainer


def _arguments(spec: Any) -> dict[str, Any]:
    options = spec.training.dpo
    return {
        "loss_type": [options.loss_type, *([SFT_TERM] if options.sft_weight else [])],
        "loss_weights": [1.0, *([options.sft_weight] if options.sft_weight else [])],
        "beta": options.beta,
        "label_smoothing": options.label_smoothing,
        "f_divergence_type": "reverse_kl",
        "ld_alpha": None,
        "use_weighting": False,
        "precompute_ref_log_probs": False,
        "sync_ref_model": False,
        "disable_dropout": not spec.lora.dropout,
        "max_length": spec.model.max_seq_length,
        "truncation_mode": "keep_start",
        "padding_free": False,
        "pad_to_multiple_of": None,
        "dataset_num_proc": None,
        "activation_offloading": False,
        "remove_unused_columns": False,  # our own collator reads ours
    }


def _check(trainer: Any, spec: Any) -> None:
    """Engines replace the trainer's code; the read-back values decide."""
    options = spec.training.dpo
    wanted = {"beta": options.beta, "label_smoothing": options.label_smoothing, "loss_type": options.loss_type}
    found = {"beta": trainer.beta, "label_smoothing": trainer.label_smoothing, "loss_type": trainer.loss_types[0]}
    for name in wanted:
        if found[name] != wanted[name]:
            _refuse(f"/training/dpo/{name}", found[name], wanted[name])
    terms = dict(zip(trainer.loss_types[1:], trainer.loss_weights[1:], strict=True))
    if terms.get(SFT_TERM, 0.0) != options.sft_weight:
        _refuse("/training/dpo/sft_weight", terms.get(SFT_TERM, 0.0), options.sft_weight)
    if trainer.ref_model is not None or REFERENCE in trainer.model.peft_config:
        _refuse("/training/method", "a reference of its own", "the base with the adapter off")


def _refuse(where: str, found: Any, expected: Any) -> None:
    what = "the engine trains with another setting than was asked for"
    raise CapacityError(Fault(what, where=where, found=str(found), expected=str(expected)))


def _reward(settings: Any, log_probability: float, reference: float, _: int) -> float:
    return float(settings.beta * (log_probability - reference))


DPO = Method(
    name="dpo",
    title="direct preference optimisation (DPO)",
    formats=("preference",),
    columns=PAIRS,
    trainer_classes=_trainer_classes,
    arguments=_arguments,
    check=_check,
    collator=collated,
    held_out=HeldOut("held_out_preference_loss", mean_loss),
    rewards=Rewards(_reward, by_reference=True),
    curves={"rewards/margins": "reward_margin", "rewards/accuracies": "preference_accuracy"},
    learning_rate=5e-6,
    needs_adapter=True,
    sequences=2,
    further_passes=1,  # of the reference
)
