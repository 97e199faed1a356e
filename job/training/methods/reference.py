"""What methods share that compare with a reference: the base, which is the model with the adapter off."""

from __future__ import annotations

from typing import Any

from job.errors import CapacityError, Fault

COPY = "ref"  # of the adapter, which trl makes


def without_copies(trainer: type) -> type:
    """`trainer`, of trl, for rows that are tokens already, and without a copy of the adapter as the reference: that
    would be what a training that goes on, or begins again in smaller batches, has learned so far.
    """
    from job.training.methods.plain import compute_on_cpus

    class Trainer(trainer):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            compute_on_cpus(given["args"])
            if COPY in self.model.peft_config:
                self.model.delete_adapter(COPY)

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return Trainer


def loss_of_batch(trainer: Any, inputs: Any) -> Any:
    """By the trainer's own loss, which notes figures of it as those of an evaluation; they are forgotten."""
    loss = trainer.compute_loss(trainer.model, inputs)
    trainer._metrics["eval"].clear()
    return loss


def require_the_base(trainer: Any) -> None:
    """Raises `CapacityError` where a trainer has a reference of its own."""
    if trainer.ref_model is not None or COPY in trainer.model.peft_config:
        raise CapacityError(
            Fault("the engine compares with another model than the base", where="/training/method",
                  found="a reference of its own", expected="the base with the adapter off")
        )  # fmt: skip


def reward(settings: Any, log_probability: float, reference: float, _: int) -> float:
    """`beta` times how much likelier an answer is than to the reference, nats."""
    return float(settings.beta * (log_probability - reference))
