"""The training on several cards: in processes of their own, and the model here again afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from job.context import Run
from job.data.build import Prepared
from job.data.reopen import save
from job.host.stats import arithmetic
from job.ledger.checkpoints import Checkpoints
from job.plan.model_size import size_of_base
from job.source import FetchedModel
from job.training.backend import Backend, loading
from job.training.checkpointing import checkpointing_of
from job.training.loop import TrainResult
from job.training.machines import say_training
from job.training.precision import compute_in_fp32
from job.training.process import TrainingRequest
from job.training.start import go_on_from
from job.training.team import train_together


def train_on_cards(
    run: Run, backend: Backend, base: FetchedModel, prepared: Prepared, checkpoints: Checkpoints
) -> tuple[Any, TrainResult]:
    """The trained model, loaded here, and what happened. Raises as the training in this process would."""
    spec, size = run.spec, size_of_base(run.spec, base)
    request = TrainingRequest(
        spec=spec,
        base=base.path,
        size=size,
        prepared=save(prepared, run.workdir / "prepared"),
        workdir=run.workdir,
        weights=run.workdir / "weights.safetensors",
        device=backend.device,
        checkpoints=checkpoints.store_uri,
        origin=checkpoints.origin,
        machine=arithmetic(run.stats.device),
        adapter=base.adapters[0] if spec.model.adapter else None,
    )
    trained = train_together(
        run.stats.effective["processes"] // spec.resources.nodes, request, run.log, run.claim.hold, say_training()
    )
    if trained.last:
        checkpoints.hold(trained.result.steps, trained.last)
    with loading():
        model = backend.load(base.path, spec.model, spec.lora, checkpointing_of(spec, size, backend.device))
    if backend.device == "cpu":
        compute_in_fp32(model)
    if spec.model.adapter:
        go_on_from(model, base.adapters[0])  # what pairs are compared with
    _restore(model, request.weights)
    run.stats.training = trained.result.summary()
    run.log("trained", **run.stats.training)
    return model, trained.result


def _restore(model: Any, file: Path) -> None:
    from safetensors.torch import load_file

    from job.training.callbacks import restore_weights

    restore_weights(model, load_file(file))
    file.unlink()
