"""The model on several cards: a process for each, which holds it from the engine to the last measurement."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from job.asked import ToExport, ToLoad, ToMeasureIn, ToTrain
from job.context import Run
from job.data.build import Prepared
from job.data.reopen import save
from job.evaluation.assess import Found, ToMeasure
from job.evaluation.benchmarks import Benchmark
from job.host.device import choose_device
from job.host.log import Log
from job.host.records import build
from job.host.signals import deferred
from job.host.stats import arithmetic, describe_device
from job.ledger.checkpoints import Checkpoints
from job.member import TASKS, HeldModel, Member, Trained
from job.plan.require import processes, require_device
from job.source import FetchedModel
from job.spec.optimizers import effective_optimizer
from job.training.backend import open_backend
from job.training.machines import led, say_training
from job.training.team import MemberAnswer, Team

MODULE = "job.asked"


def open_model(run: Run) -> HeldModel:
    """The training engine on its device, in this process or in one for each card; a device that is not there ends the
    run here.
    """
    spec, device = run.spec, choose_device()
    require_device(spec, device)  # before an engine is imported
    count = processes(spec, device)
    together = count * spec.resources.nodes > 1 and not spec.model.adapters
    if not together:
        here = Path.cwd()
        os.chdir(run.workdir)  # engines write things into the current directory
        backend = open_backend(spec.model.backend, device, spec.training.method)
        os.chdir(here)  # the model's path may be relative to it
    run.stats.device = describe_device(device)
    run.stats.effective = {
        "backend": spec.model.backend,
        "precision": spec.model.precision,
        "optimizer": effective_optimizer(spec.training.optimizer, device),
        "packing": spec.data.packing,
        "method": spec.training.method,
        "processes": count * spec.resources.nodes if together else 1,
    }
    run.log("engine", device=run.stats.device["name"], **run.stats.effective)
    return Several(run, device, count) if together else Member(spec, backend, run.workdir, run.log, run.log.live)


class Several:
    """As `job.member.HeldModel` says. What the processes took of their cards is the stage's."""

    several = True

    def __init__(self, run: Run, device: str, count: int) -> None:
        """Starts them, of this machine; they get ready while rows and weights do."""
        self._run = run
        self._figures: list[str] = []  # of benchmarks, in the order of the spec
        self._team = Team(MODULE, count, run.spec, device, run.workdir, run.log, led())

    def load(self, base: FetchedModel, merge_base: Path | None, prepared: Prepared, tasks: Sequence[Benchmark]) -> str:
        self._figures = [figure.name for task in tasks for figure in task.figures]
        request = load_request(base, merge_base, prepared, self._run.workdir, tasks)
        answers = self._ask("load", request)
        return str(answers[0].result)

    def measure(self, asked: ToMeasure, stage: str) -> Found:
        answers = self._ask("measure", ToMeasureIn(asked, stage), says_alive=True)
        found = Found.of([build(Found, answer.result) for answer in answers])
        return replace(found, tasks={name: found.tasks[name] for name in self._figures})

    def train(self, checkpoints: Checkpoints) -> Trained:
        run = self._run
        request = ToTrain(checkpoints.store_uri, checkpoints.origin, arithmetic(run.stats.device))
        say_training()
        with deferred():
            answers = train_together(self._team, request, run.log, run.claim.hold)
            self._note(answers)
            trained: Trained = build(Trained, answers[0].result)
            if trained.result and trained.last:
                checkpoints.hold(trained.result.steps, trained.last)
        return trained

    def export(self, folder: Path, probe: Path) -> dict[str, Path]:
        probe.parent.mkdir(parents=True, exist_ok=True)
        answers = self._ask("export", ToExport(folder, probe), first_alone=True)
        return {key: Path(path) for key, path in answers[0].result.items()}

    def end(self) -> None:
        self._team.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._team.__exit__()

    def _ask(self, what: str, request: Any, first_alone: bool = False, says_alive: bool = False) -> list[MemberAnswer]:
        answers = self._team.ask(what, request, self._run.log.live, first_alone, says_alive=says_alive)
        self._note(answers)
        return answers

    def _note(self, answers: list[MemberAnswer]) -> None:
        for answer in answers:
            self._run.stats.met_gpu_peak(answer.peak_allocated_bytes, answer.peak_reserved_bytes)


def load_request(
    base: FetchedModel, merge_base: Path | None, prepared: Prepared, workdir: Path, tasks: Sequence[Benchmark] = ()
) -> ToLoad:
    """Writes the rows where the processes find them."""
    brought = tuple(task.brought() for task in tasks)
    return ToLoad(base, merge_base, save(prepared, workdir / "prepared"), brought, workdir / TASKS)


def train_together(
    team: Team, request: ToTrain, log: Log, claim: Callable[[], None], look_beside: Callable[[], None] = lambda: None
) -> list[MemberAnswer]:
    """`claim` is called before the first checkpoint is stored, `look_beside` all the time: what it raises ends them.
    Where signals are `deferred`, their step is stored.

    Raises what one of them ended with, and `Interrupted` for a signal.
    """

    def look() -> None:
        team.claim_if_asked(claim)
        look_beside()

    return team.ask("train", request, partial(log.bar, every_seconds=0.0), look=look, meet=True)
