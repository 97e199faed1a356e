"""What methods share that compare with a reference: the model as the training found it. That is the base, which is the
model with the adapter off, or the base with the adapter that was gone on from, of which there is then a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from job.errors import CapacityError

COPY = "ref"  # of the adapter, which trl makes
GIVEN = "_tunejob_given"  # of the model: the file of the weights that it goes on from


def without_copies(trainer: type) -> type:
    """`trainer`, of trl, for rows that are tokens already, and without a copy of the trained adapter as the reference:
    that would be what a training that is resumed, or begins again in smaller batches, has learned so far.
    """
    from job.training.methods.plain import compute_on_cpus

    class Trainer(trainer):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            _forget(given["model"])
            super().__init__(**given)
            compute_on_cpus(given["args"])
            if not _restore(self.model):
                _forget(self.model)

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return Trainer


def _forget(model: Any) -> None:
    if COPY in model.peft_config:
        model.delete_adapter(COPY)


def _restore(model: Any) -> bool:
    """Whether there is an adapter that was gone on from; the copy is then that one."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    given: Path | None = getattr(model, GIVEN, None)
    if given is None or COPY not in model.peft_config:  # a method may compare with nothing
        return False
    set_peft_model_state_dict(model, load_file(given), adapter_name=COPY)
    for name, parameter in model.named_parameters():
        if f".{COPY}." in name:
            parameter.requires_grad_(False)
    return True


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """Within, `model` is what it is compared with."""
    from trl.trainer.utils import use_adapter

    with use_adapter(model, COPY if COPY in model.peft_config else None):
        yield


def loss_of_batch(trainer: Any, inputs: Any) -> Any:
    """By the trainer's own loss, which notes figures of it as those of an evaluation; they are forgotten."""
    loss = trainer.compute_loss(trainer.model, inputs)
    trainer._metrics["eval"].clear()
    return loss


def require_the_base(trainer: Any) -> None:
    """Raises `CapacityError` where a trainer has a reference of its own."""
    given = getattr(trainer.model, GIVEN, None) is not None
    if trainer.ref_model is not None or (COPY in trainer.model.peft_config) != given:
        raise CapacityError("the engine compares with another model than the training found", where="/training/method",
                            found="a reference of its own",
                            expected="the base, with the adapter that was gone on from, if any")  # fmt: skip


def reward(settings: Any, log_probability: float, reference: float, _: int) -> float:
    """`beta` times how much likelier an answer is than to the reference, nats."""
    return float(settings.beta * (log_probability - reference))
