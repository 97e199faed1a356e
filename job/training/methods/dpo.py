"""Direct preference optimisation: the chosen answer rather than the rejected one, without going far from the base."""

from __future__ import annotations

from typing import Any

from job.training.methods.pairs import MARGINS, mean_loss, one_after_the_other, require_settings
from job.training.methods.record import PAIRS, HeldOut, Method, Rewards
from job.training.methods.reference_model import loss_of_batch, require_the_base, reward, without_copies

SFT_TERM = "sft"


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
    terms = dict(zip(trainer.loss_types[1:], trainer.loss_weights[1:], strict=True))
    found = {"beta": trainer.beta, "label_smoothing": trainer.label_smoothing, "loss_type": trainer.loss_types[0]}
    require_settings("dpo", found | {"sft_weight": terms.get(SFT_TERM, 0.0)}, vars(spec.training.dpo))
    require_the_base(trainer)


DPO = Method(
    name="dpo",
    title="direct preference optimisation (DPO)",
    formats=("preference",),
    columns=PAIRS,
    trl_name="DPO",
    own_trainer=without_copies,
    arguments=_arguments,
    check=_check,
    collator=one_after_the_other,
    held_out=HeldOut("held_out_preference_loss", lambda *given: mean_loss(loss_of_batch, *given)),
    rewards=Rewards(reward, by_reference=True),
    curves=MARGINS,
    learning_rate=5e-6,
    needs_adapter=True,
    sequences=2,
    further_passes=1,  # of the reference
)
