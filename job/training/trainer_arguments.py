"""The settings that every method's trainer takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from job.host.micro_batch import MicroBatch
from job.spec import JobSpec
from job.spec.optimizers import effective_optimizer
from job.training.methods import METHODS

KUBEFLOW_VARIABLE = "KUBEFLOW_TRAINER_SERVER_URL"  # set by Kubeflow Trainer where its TrainJobStatus feature is on


def trainer_arguments(
    spec: JobSpec, batch: MicroBatch, device: str, workdir: Path, checkpointing: str | bool
) -> dict[str, Any]:
    """Every setting of transformers' trainer that has an effect: defaults differ between engines and versions.
    `checkpointing`: as the model was loaded.
    """
    # Plain PEFT has it on in as many layers as are to have it; the trainer would switch it on in all
    checkpointing = checkpointing if spec.model.backend == "unsloth" else False
    training = spec.training
    bf16 = device == "cuda" and _bf16()
    return {
        "output_dir": str(workdir / "trainer"),
        "run_name": spec.name,
        "num_train_epochs": training.epochs or 1,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": batch.rows,
        "gradient_accumulation_steps": batch.accumulation_steps,
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
        "gradient_checkpointing": bool(checkpointing),
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if checkpointing is True else None,
        "logging_strategy": "steps",
        "logging_steps": training.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a NaN must be seen, not averaged away
        # It waits for the GPU at each forward pass; callbacks.TokenCounter does not
        "include_num_input_tokens_seen": "no",
        # In a TrainJob whose controller asks for it; the spec's trackers hear of it from our own callbacks
        "report_to": ["kubeflow"] if os.environ.get(KUBEFLOW_VARIABLE) else "none",
        "disable_tqdm": True,
        "eval_strategy": "no",  # callbacks.HeldOut evaluates
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "dataloader_drop_last": False,
        "train_sampling_strategy": "random" if spec.data.shuffle else "sequential",
        "push_to_hub": False,
    }


def join_rows(spec: JobSpec, batch: MicroBatch, device: str, rows: Any) -> dict[str, Any]:
    """Has Unsloth compute the `rows` of a forward pass one behind the other, each by itself, in the place of padding
    them, where that is possible: on a CPU they would see each other, packed ones are joined already, and one alone has
    no padding. Unsloth does it only where it knows that none is too long; for models that cannot, it pads them still.
    """
    alone = batch.rows == 1 or spec.data.packing
    if device != "cuda" or alone or not METHODS[spec.training.method].joins(spec):
        return {}
    rows.__dict__["_unsloth_truncated_to"] = spec.model.max_seq_length
    return {"padding_free": True}


def _bf16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported())
