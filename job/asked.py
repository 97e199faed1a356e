"""A process that holds the model and does with it what it is asked to, by `job.several`: one for each card.

    python -m job.asked REQUEST_JSON RESULT_JSON

Where the engine is Unsloth it is started, not forked: Unsloth has to be imported before transformers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from job.data.reopen import reopen
from job.errors import InputError
from job.evaluation.assess import Found, ToMeasure
from job.evaluation.benchmarks import Brought, load_brought
from job.evaluation.shares import by_rows
from job.host.child import serve
from job.host.conversation import Answering
from job.host.log import Log
from job.host.memory import blocks_used_again
from job.host.records import build
from job.host.signals import install
from job.host.stats import forget_gpu_peaks, gpu_peaks
from job.ledger.checkpoints import Checkpoints, TrainingOrigin
from job.member import Member, Trained
from job.source import FetchedModel
from job.store import open_store
from job.training.alive import says_alive
from job.training.backend import open_backend
from job.training.ranks import Ranks
from job.training.team import ASKED, GIVEN, MET, MemberRequest

CLAIM_SECONDS = 0.02
SHOWN_SECONDS = 0.5  # between two words of how far it is


@dataclass(frozen=True)
class ToLoad:
    """`merge_base`: None where nothing is merged. `prepared`: where `job.data.reopen.save` wrote the rows. `tasks`:
    benchmarks, whose documents are in `documents`.
    """

    base: FetchedModel
    merge_base: Path | None
    prepared: Path
    tasks: tuple[Brought, ...] = ()
    documents: Path | None = None


@dataclass(frozen=True)
class ToMeasureIn:
    """`stage`: under whose name answers are heard."""

    asked: ToMeasure
    stage: str


@dataclass(frozen=True)
class ToTrain:
    """`checkpoints` is the address of their store. `machine`: as `job.host.stats.arithmetic` gives it."""

    checkpoints: str
    origin: TrainingOrigin
    machine: dict[str, str]


@dataclass(frozen=True)
class ToExport:
    """Folder of what was trained, and file of the probe."""

    folder: Path
    probe: Path


def handle(request: MemberRequest) -> None:
    """Answers what it is asked until there is no more. Raises what a `Member` raises."""
    install(lambda _: None)
    import torch

    spec, place, share = request.spec, request.place, request.share
    torch.set_num_threads(place.threads)
    workdir = request.workdir if place.rank == 0 else place.workdir
    workdir.mkdir(exist_ok=True)
    log = Log(place.said.open("a", 1, "utf-8"), json_lines=True)
    backend = open_backend(spec.model.backend, request.device, spec.training.method)
    member = Member(spec, backend, workdir, log, partial(log.bar, every_seconds=SHOWN_SECONDS), share)
    answers: dict[str, Callable[[Member, Any], Any]] = {
        "load": _load,
        "measure": partial(_measure, place.said),
        "train": partial(_train, request),
        "export": _export,
    }
    asked = Answering(place.said)
    for what, given in asked.questions():
        forget_gpu_peaks()
        with blocks_used_again():
            result = answers[what](member, given)
        allocated, reserved = gpu_peaks()
        asked.answer({"result": result, "peak_allocated_bytes": allocated, "peak_reserved_bytes": reserved})


def _load(member: Member, given: Any) -> str:
    asked: ToLoad = build(ToLoad, given)
    numbers = {number for (number,) in member.share.of(by_rows(len(asked.tasks), 1), lambda _: 1.0)}
    own = [task for number, task in enumerate(asked.tasks) if number in numbers]
    most, documents = member.spec.evaluation.max_new_tokens, asked.documents or Path()
    tasks = load_brought(own, documents, most) if own else []
    return member.load(asked.base, asked.merge_base, reopen(asked.prepared, asked.base.path), tasks)


def _measure(said: Path, member: Member, given: Any) -> Found:
    asked: ToMeasureIn = build(ToMeasureIn, given)
    with says_alive(member.model, said):
        return member.measure(asked.asked, asked.stage)


def _train(request: MemberRequest, member: Member, given: Any) -> Trained:
    """Meets the others, and trains with them."""
    asked, place, spec = build(ToTrain, given), request.place, request.spec
    # Once everything is loaded, as engines look for such a group; none leaves it, for which all would have to wait
    ranks = Ranks(place, request.device, spec.resources.spreads)
    place.said.with_suffix(MET).touch()
    if not all(origin == asked.origin for origin in ranks.gathered(asked.origin)):
        raise InputError("the machines have prepared other rows, or another base", where="/data/train",
                         hint="Name commits of the Hub, not branches, and rows that do not change")  # fmt: skip
    checkpoints = Checkpoints(
        open_store(asked.checkpoints if place.rank == 0 else str(place.workdir)), asked.origin, spec.output.checkpoints,
        member.log, asked.machine, claim=partial(claim, place.said),
    )  # fmt: skip
    return member.train(checkpoints, ranks)


def _export(member: Member, given: Any) -> dict[str, Path]:
    asked: ToExport = build(ToExport, given)
    return member.export(asked.folder, asked.probe)


def claim(said: Path) -> None:
    """Has the run, which holds the lease, claim the output; returns once it has. It ends this process otherwise."""
    asked, given = (said.with_suffix(suffix) for suffix in (ASKED, GIVEN))
    asked.touch()
    while not given.exists():
        time.sleep(CLAIM_SECONDS)


if __name__ == "__main__":
    serve(handle)
