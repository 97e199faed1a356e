"""The training stage: explicit trainer settings, the loop, what came out of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.backend import Backend, effective_optimizer
from job.errors import CapacityError, Fault
from job.evaluate import loss_of
from job.log import Log
from job.spec import JobSpec, TrainingSpec

if TYPE_CHECKING:
    from job.data.build import Prepared


@dataclass(frozen=True)
class TrainResult:
    """What happened. Losses are means over the tokens of a step; seconds are wall time of the loop alone."""

    steps: int
    wall_seconds: float
    wall_minutes: float
    tokens: int
    tokens_per_second: float
    median_step_seconds: float
    first_loss: float
    final_loss: float
    best_held_out_loss: float | None
    best_step: int | None
    kept: str
    stopped_early: bool
    trainable_parameters: int
    trainable_dtype: str
    history: list[dict[str, float]]
    held_out_history: list[dict[str, float]]

    def summary(self) -> dict[str, Any]:
        """Everything but the curves, which lie in `report/losses.jsonl`."""
        return {key: value for key, value in vars(self).items() if not key.endswith("history")}


def train(backend: Backend, model: Any, spec: JobSpec, prepared: Prepared, workdir: Path, log: Log) -> TrainResult:
    """Trains `model` in place on `prepared.train`.

    Raises `CapacityError` if packing was asked for and is not effective, `GateError` when the loss is not a number.
    """
    from job.callbacks import Curves, HeldOut, TokenCounter, Watch, restore_weights

    config_class, trainer_class = backend.trainer_classes()
    arguments = config_class(**trainer_arguments(spec, backend.device, workdir))
    with log.bar("train", every_seconds=0.0) as bar:
        trainer = trainer_class(model=model, args=arguments, train_dataset=prepared.train, processing_class=prepared.tokenizer)
        check_packing(trainer, spec.data.packing)
        tokens = TokenCounter(trainer)
        if backend.device == "cpu":
            compute_in_fp32(model)

        def measure() -> float:
            backend.for_inference(model)
            loss = loss_of(model, prepared.held_out, spec.training.eval_batch_size, prepared.tokenizer.pad_token_id)
            backend.for_training(model)
            return loss

        def tell(step: int, loss: float) -> None:
            due = trainer.control.should_log  # logging our figure would swallow the step's own
            trainer.log({"held_out_loss": loss})
            trainer.control.should_log = due
            log("held_out", step=step, held_out_loss=loss)

        watch = Watch(bar, tokens)
        held_out = HeldOut(spec.training, measure, tell)
        trainer.add_callback(watch)
        if "tensorboard" in spec.tracking:
            trainer.add_callback(Curves(workdir / "report" / "tensorboard"))
        trainer.add_callback(held_out)
        backend.for_training(model)
        output = trainer.train()
    if held_out.best_weights is not None:
        restore_weights(model, held_out.best_weights)
    return _result(trainer, output, watch, held_out, spec.training)


def _result(trainer: Any, output: Any, watch: Any, held_out: Any, spec: TrainingSpec) -> TrainResult:
    state, seconds = trainer.state, float(output.metrics["train_runtime"])
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    steady = watch.step_seconds[2:] or watch.step_seconds  # the first two steps compile kernels
    return TrainResult(
        steps=state.global_step,
        wall_seconds=round(seconds, 4),
        wall_minutes=round(seconds / 60, 2),
        tokens=watch.tokens.count(),
        tokens_per_second=round(watch.tokens.count() / seconds, 2),
        median_step_seconds=round(statistics.median(steady), 4),
        first_loss=watch.history[0]["loss"],
        final_loss=watch.history[-1]["loss"],
        best_held_out_loss=held_out.best_loss if held_out.history else None,
        best_step=held_out.best_step if held_out.history else None,
        kept=spec.keep,
        stopped_early=held_out.stopped_early,
        trainable_parameters=sum(p.numel() for p in trainable),
        trainable_dtype="+".join(sorted({str(p.dtype).removeprefix("torch.") for p in trainable})),
        history=watch.history,
        held_out_history=held_out.history,
    )


def compute_in_fp32(model: Any) -> None:
    """TRL casts the adapter of a quantised model to bf16, which CPUs only emulate."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_packing(trainer: Any, wanted: bool) -> None:
    """Engines switch packing off with a warning; the read-back value decides."""
    found = bool(getattr(trainer.args, "packing", False))
    if found != wanted:
        raise CapacityError(
            Fault("the engine did not pack the rows", "/data/packing", str(found).lower(), str(wanted).lower(),
                  "This model or device cannot keep packed rows apart: set packing to false")
        )  # fmt: skip


def trainer_arguments(spec: JobSpec, device: str, workdir: Path) -> dict[str, Any]:
    """Every SFTConfig field that has an effect, set: defaults differ between engines and versions."""
    training = spec.training
    bf16 = device == "cuda" and _bf16()
    return {
        "output_dir": str(workdir / "trainer"),
        "run_name": spec.name,
        "num_train_epochs": training.epochs or 1,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler,
        "warmup_steps": training.warmup_steps if training.warmup_steps is not None else training.warmup_ratio or 0,
        "optim": effective_optimizer(training.optimizer, device),
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
        "data_seed": training.seed,
        "bf16": bf16,
        "fp16": device == "cuda" and not bf16,
        "use_cpu": device == "cpu",
        "gradient_checkpointing": bool(training.gradient_checkpointing),
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if training.gradient_checkpointing is True else None,
        "logging_strategy": "steps",
        "logging_steps": training.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a NaN must be seen, not averaged away
        "include_num_input_tokens_seen": "no",  # it waits for the GPU at each forward pass; callbacks.TokenCounter does not
        "report_to": [name for name in spec.tracking if name != "tensorboard"] or "none",  # callbacks.Curves writes those
        "disable_tqdm": True,
        "eval_strategy": "no",  # callbacks.HeldOut evaluates
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "dataloader_drop_last": False,
        "train_sampling_strategy": "random" if spec.data.shuffle else "sequential",
        "shuffle_dataset": False,  # the data stage has shuffled
        "max_length": spec.model.max_seq_length,
        "packing": spec.data.packing,
        "packing_strategy": "bfd",
        "eval_packing": False,
        "completion_only_loss": False,  # labels are ours
        "assistant_only_loss": False,
        "dataset_num_proc": None,
        "dataset_kwargs": {"skip_prepare_dataset": not spec.data.packing},  # rows are cut and masked already
        "push_to_hub": False,
    }


def _bf16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported())
