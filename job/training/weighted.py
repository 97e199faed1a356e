"""A loss in which tokens have weights: those of messages that are learned in part.

Engines carry ids and labels through their packing and collating, and nothing else. So a weight travels within the label
of its token, and is taken out of it before the model is asked. What the loss is made of are TRL's log-probabilities of
the learned tokens alone, on which its losses of pairs are computed by both engines.
"""

from __future__ import annotations

from typing import Any

from job.errors import CapacityError
from job.training.methods.plain import compute_on_cpus
from job.training.methods.record import WEIGHTS

NOT_LEARNED = -100
WHOLE = 1_000_000  # of the millionths that a weight is counted in
PLACES = 32  # bits of a label that are the token; above them is what a weight lacks to be whole, in millionths
PART = 3  # numbers of a part that has a weight: its first token, the one after its last, millionths


def weighing(trainer_class: Any, rows: Any) -> tuple[Any, Any]:
    """Trainer and prepared rows without the column of weights: another trainer where there are any."""
    if WEIGHTS not in rows.column_names:
        return trainer_class, rows
    if not has_weights(rows):
        return trainer_class, rows.remove_columns(WEIGHTS)
    return weighted(trainer_class), with_weights(rows)


def has_weights(rows: Any) -> bool:
    """Whether any of the prepared rows has a part that is learned in part."""
    import pyarrow.compute as pc

    return bool(pc.max(pc.list_value_length(rows.data.column(WEIGHTS))).as_py())


def with_weights(rows: Any) -> Any:
    """The rows with their weights within their labels, in place of the column."""
    from datasets import Features, List, Value

    features = Features({"input_ids": rows.features["input_ids"], "labels": List(Value("int64"))})
    return rows.map(_within, features=features, remove_columns=[WEIGHTS])


def _within(row: dict[str, Any]) -> dict[str, Any]:
    labels, parts = list(row["labels"]), row[WEIGHTS]
    for first, after, millionths in zip(parts[::PART], parts[1::PART], parts[2::PART], strict=True):
        lacks = WHOLE - millionths << PLACES
        labels[first:after] = [label if label == NOT_LEARNED else label + lacks for label in labels[first:after]]
    return {"labels": labels}


def taken_out(labels: Any) -> tuple[Any, Any]:
    """Of labels with weights in them, int64, the labels, and the weights as float32: 1 where nothing else is said."""
    import torch

    learned = labels >= 0
    weights = 1 - (labels >> PLACES).float() / WHOLE
    return torch.where(learned, labels & ((1 << PLACES) - 1), labels), torch.where(learned, weights, 0.0)


def weighted(trainer_class: Any) -> Any:
    """The trainer with a loss that is the sum of what each learned token adds times its weight, over the number of
    learned tokens of the step: without weights that of the trainer itself.
    """

    class Weighted(trainer_class):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            compute_on_cpus(self.args)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            import torch

            labels, weights = taken_out(inputs["labels"])
            outputs = model(**inputs | {"labels": labels, "use_cache": False}, fused_lm_head=True)
            if getattr(outputs, "log_probs", None) is None:
                raise CapacityError("with this engine tokens of this model have no weights", where="/data/train",
                                    found="messages with a weight between 0 and 1", expected="0 or 1",
                                    hint='Write such weights as 0 or 1, or "backend": "peft"')  # fmt: skip
            known = num_items_in_batch if self.model_accepts_loss_kwargs else None  # else the trainer divides by passes
            tokens = torch.as_tensor(outputs.label_mask.sum() if known is None else known).clamp(min=1)
            loss = -(outputs.log_probs * weights[:, 1:].to(outputs.log_probs.device)).sum() / tokens
            if outputs.aux_loss is not None:  # of a mixture of experts whose config asks for it
                passes = 1 if known is None else self.current_gradient_accumulation_steps
                loss = loss + self.model.config.get_text_config().router_aux_loss_coef * outputs.aux_loss / passes
            return (loss, outputs) if return_outputs else loss

    Weighted.__name__ = trainer_class.__name__  # which engines ask for
    return Weighted
