"""The training in a process of its own: what it needs is in its request and on disk, what it has made goes to a file.

    python -m job.training.process REQUEST_JSON RESULT_JSON

A run trains in its own process; `job.training.team` starts several of these, one for each card. Where the engine is
Unsloth the process is started, not forked: it has to be imported before transformers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from job.data.reopen import reopen
from job.errors import InputError
from job.host.child import serve
from job.host.log import Log
from job.host.signals import install
from job.ledger.checkpoints import Checkpoints, TrainingOrigin
from job.plan.model_size import ModelSize
from job.source.given_adapter import FetchedAdapter
from job.spec import JobSpec
from job.store import open_store
from job.training.backend import loading, open_backend
from job.training.checkpointing import checkpointing_of
from job.training.checks import require_compute_dtype
from job.training.loop import TrainResult, train
from job.training.ranks import RankPlace, Ranks
from job.training.start import go_on_from

ASKED, GIVEN = ".asked", ".given"  # beside the log: that the output be claimed, and that it is
MET = ".met"  # that the process has met the others
CLAIM_SECONDS = 0.02


@dataclass(frozen=True)
class TrainingRequest:
    """What to train on what. `checkpoints` is the address of their store; a training goes on at the newest.

    `base`: folder of the model, `size` what is in it. `prepared`: where `job.data.reopen.save` wrote the rows.
    `workdir`: scratch, this process's alone. `machine`: as `job.host.stats.arithmetic` gives it. `weights`: the file
    that gets every trained tensor under its name in the model, safetensors, for `restore_weights`. `place`: among
    several that train together. `adapter`: what the training goes on from.
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
    place: RankPlace | None = None
    adapter: FetchedAdapter | None = None


@dataclass(frozen=True)
class Trained:
    """`last`: where the first process has kept the state after the last step, for `Checkpoints.hold`."""

    result: TrainResult
    last: Path | None


def handle(request: TrainingRequest) -> Trained:
    """Loads, trains as the run itself would, and writes `request.weights`. Raises what `train` raises, and
    `Interrupted` once a stop signal's step is stored.
    """
    from safetensors.torch import save_file

    install(lambda _: None)
    spec, place = request.spec, request.place
    if place:
        import torch

        torch.set_num_threads(place.threads)
    log = Log(place.said.open("w", 1, "utf-8") if place else None, json_lines=True)
    backend = open_backend(spec.model.backend, request.device, spec.training.method)
    prepared = reopen(request.prepared, request.base)
    with loading():
        checkpointing = checkpointing_of(spec, request.size, request.device)
        model = backend.load(request.base, spec.model, spec.lora, checkpointing)
    if request.adapter:
        go_on_from(model, request.adapter)
    require_compute_dtype(model, backend.device)
    ranks = Ranks(
        place, backend.device, spec.resources.spreads
    )  # once everything is loaded: engines look for such a group
    if place:
        place.said.with_suffix(MET).touch()
    if not all(origin == request.origin for origin in ranks.gathered(request.origin)):
        raise InputError("the machines have prepared other rows, or another base", where="/data/train",
                         hint="Name commits of the Hub, not branches, and rows that do not change")  # fmt: skip
    checkpoints = Checkpoints(
        open_store(request.checkpoints), request.origin, spec.output.checkpoints, log, request.machine,
        claim=partial(claim, place.said) if place else _claimed_by_the_caller,
    )  # fmt: skip
    result = train(backend, model, request.size, spec, prepared, request.workdir, checkpoints, log, ranks)
    from job.training.callbacks import trainable_weights

    weights = trainable_weights(model, kept=ranks.first)
    if ranks.first:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, request.weights)
    return Trained(result, checkpoints.held)


def _claimed_by_the_caller() -> None:
    """The run holds the lease and has claimed the output before this process begins."""


def claim(said: Path) -> None:
    """Has the run, which holds the lease, claim the output; returns once it has. It ends this process otherwise."""
    asked, given = (said.with_suffix(suffix) for suffix in (ASKED, GIVEN))
    asked.touch()
    while not given.exists():
        time.sleep(CLAIM_SECONDS)


if __name__ == "__main__":
    serve(handle)
