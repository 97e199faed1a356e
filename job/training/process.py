"""The training in a process of its own: what it needs is in its request and on disk, what it has made goes to a file.

    python -m job.training.process REQUEST_JSON RESULT_JSON

A run trains in its own process; this is for whoever starts several of them. Where the engine is Unsloth the process is
started, not forked: it has to be imported before transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from job.data.reopen import reopen
from job.host.child import serve
from job.host.log import Log
from job.host.signals import install
from job.ledger.checkpoints import Checkpoints, TrainingOrigin
from job.plan.model_size import ModelSize
from job.spec import JobSpec
from job.store import open_store
from job.training.backend import loading, open_backend
from job.training.checkpointing import checkpointing_of
from job.training.checks import require_compute_dtype
from job.training.loop import TrainResult, train


@dataclass(frozen=True)
class TrainingRequest:
    """What to train on what. `checkpoints` is the address of their store; a training goes on at the newest.

    `base`: folder of the model, `size` what is in it. `prepared`: where `job.data.reopen.save` wrote the rows.
    `workdir`: scratch, this process's alone. `machine`: as `job.host.stats.arithmetic` gives it. `weights`: the file
    that gets every trained tensor under its name in the model, safetensors, for `restore_weights`.
    """

    spec: JobSpec
    base: Path
    size: ModelSize
    prepared: Path
    workdir: Path
    weights: Path
    device: str
    checkpoints: str
    origin: TrainingOrigin
    machine: dict[str, str]


def handle(request: TrainingRequest) -> TrainResult:
    """Loads, trains as the run itself would, and writes `request.weights`. Raises what `train` raises, and
    `Interrupted` once a stop signal's step is stored.
    """
    from safetensors.torch import save_file

    install(lambda _: None)
    spec, log = request.spec, Log(json_lines=True)
    backend = open_backend(spec.model.backend, request.device)
    prepared = reopen(request.prepared, request.base)
    with loading():
        checkpointing = checkpointing_of(spec, request.size, request.device)
        model = backend.load(request.base, spec.model, spec.lora, checkpointing)
    require_compute_dtype(model, backend.device)
    store = open_store(request.checkpoints)
    checkpoints = Checkpoints(
        store, request.origin, spec.output.checkpoints, log, request.machine, claim=_claimed_by_the_caller
    )
    result = train(backend, model, request.size, spec, prepared, request.workdir, checkpoints, log)
    from job.training.callbacks import trainable_weights

    save_file({name: weight.contiguous() for name, weight in trainable_weights(model).items()}, request.weights)
    return result


def _claimed_by_the_caller() -> None:
    """The run holds the lease and has claimed the output before this process begins."""


if __name__ == "__main__":
    serve(handle)
