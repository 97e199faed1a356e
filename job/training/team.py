"""Starts the processes that train together, one for each card of this machine, and sees them to their end.

They get what torchrun gives its own, and this in its place: a stop signal reaches every process and the step that runs
is stored, the end of one ends the others, and each says in its own words what it ended with. The first writes the
events, and has the run's credentials: it stores the checkpoints. The lease stays with the run.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from job.errors import DeviceError, GateError, Interrupted, JobError
from job.host.cgroup import usable_cores
from job.host.child import Child, without_secrets
from job.host.device import VISIBLE, cards
from job.host.log import Bar, Log
from job.host.records import build
from job.host.signals import deferred, stop_requested, stopped
from job.training.machines import Machine
from job.training.process import ASKED, GIVEN, MET, Trained, TrainingRequest
from job.training.ranks import GONE, RankPlace

MODULE = "job.training.process"
LOOK_SECONDS = 0.02
ALONE = Machine()
LAST_WORDS_SECONDS = 5.0  # for the others to end with reasons of their own, once one has failed
# They are on one machine; a container's name may resolve to nothing
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def train_together(
    count: int, request: TrainingRequest, log: Log, claim: Callable[[], None], machine: Machine = ALONE,
    look_beside: Callable[[], None] = lambda: None,
) -> Trained:  # fmt: skip
    """Trains in `count` processes on each `machine`, as `request` says for one. `claim` is called before the first
    checkpoint is stored, `look_beside` all the time: what it raises ends them.

    Raises what one of them ended with, and `Interrupted` once a stop signal's step is stored.
    """
    folder = request.workdir / "together"
    folder.mkdir(exist_ok=True)
    meeting = f"file://{folder / uuid.uuid4().hex}" if machine.count == 1 else machine.processes_meet
    threads, first, whole = max(1, usable_cores() // count), machine.number * count, machine.count * count
    places = [
        RankPlace(first + local, whole, meeting, folder / f"rank-{first + local}.jsonl", threads, local, machine.number)
        for local in range(count)
    ]
    for place in places:
        place.said.write_bytes(b"")
        place.said.with_suffix(MET).unlink(missing_ok=True)
    with ExitStack() as stack, deferred(), log.bar("train", every_seconds=0.0) as bar:
        members = [stack.enter_context(_start(request, place, folder)) for place in places]
        said = stack.enter_context(places[0].said.open(encoding="utf-8"))

        def look() -> None:
            if machine.number == 0:
                _relay(said, log, bar)
                _claim_if_asked(places[0].said, claim)
            look_beside()

        ended_here = _follow(members, look, lambda: all(place.said.with_suffix(MET).exists() for place in places))
        look()
        return _outcome(members, ended_here, places[0].rank, log)


def _follow(members: Sequence[Child], look: Callable[[], None], met: Callable[[], bool]) -> set[int]:
    """Waits until all have ended; the ranks that were ended by force, after a failure or a stop before `met`."""
    stopping, failed_at, by_force = False, 0.0, set()
    while running := [rank for rank, member in enumerate(members) if not member.ended()]:
        look()
        codes = {member.exit_code for member in members}
        if not stopping and (stop_requested() or Interrupted.exit_code in codes):
            stopping = True
            for rank in running:
                members[rank].stop()
        # After a stop the others have the time of the stop itself to store what there is
        if not failed_at and codes - {None, 0, Interrupted.exit_code}:
            failed_at = time.monotonic()
        # One that waits for another in native code hears no signal, and has nothing to store
        gave_up = failed_at and time.monotonic() - failed_at > LAST_WORDS_SECONDS
        if gave_up or (stopping and not met()):
            by_force.update(running)
            for rank in running:
                members[rank].kill()
        time.sleep(LOOK_SECONDS)
    return by_force


def _start(request: TrainingRequest, place: RankPlace, folder: Path) -> Child:
    """The first works where a run by itself would; the others have scratch of their own, and store nothing."""
    what = f"process {place.rank + 1} of {place.count} of the training"
    environment, own = environment_of(place), replace(request, place=place)
    if place.rank > 0:
        workdir = place.workdir
        workdir.mkdir(exist_ok=True)
        own = replace(own, workdir=workdir, checkpoints=str(workdir))
    if request.device == "cuda":
        environment[VISIBLE] = cards()[place.local]
    if request.device == "cpu" and request.spec.model.backend != "unsloth":
        return Child(MODULE, own, folder, what, further=environment)  # forked
    return Child(MODULE, own, folder, what, environment)


def environment_of(place: RankPlace) -> dict[str, str]:
    """The run's own, and how its processes meet; without what is secret for those that store nothing."""
    loopback = LOOPBACK if place.meeting.startswith("file") else {}
    found = loopback | dict(os.environ) | {"OMP_NUM_THREADS": str(place.threads)}
    if place.rank == 0:
        return found
    # It writes there as if it were alone
    return without_secrets(found) | {"UNSLOTH_COMPILE_LOCATION": str(place.workdir / "unsloth")}


def _relay(said: IO[str], log: Log, bar: Bar) -> None:
    """What the first process has said since, as if the run had said it."""
    while True:
        at = said.tell()
        line = said.readline()
        if not line.endswith("\n"):
            said.seek(at)  # it is being written
            return
        with suppress(ValueError):
            record = json.loads(line)
            event = record.pop("event")
            record.pop("time", None)
            if event == "train" and "done" in record:
                bar.total = record.pop("total")
                bar.update(record.pop("done"), **record)
            else:
                log(event, **record)


def _claim_if_asked(said: Path, claim: Callable[[], None]) -> None:
    asked, given = said.with_suffix(ASKED), said.with_suffix(GIVEN)
    if asked.exists():
        claim()
        asked.unlink()
        given.touch()


def _outcome(members: Sequence[Child], ended_here: set[int], first: int, log: Log) -> Trained:
    """What the first has made. Raises what says most of a failure: that another is gone says least."""
    failures: dict[int, JobError] = {}
    found: list[Trained] = []
    for rank, member in enumerate(members):
        try:
            found.append(build(Trained, member.wait()))
        except JobError as error:
            if rank not in ended_here:
                failures[rank] = _of_a_card(error)
    if not failures and not found:
        raise stopped()
    if not failures:
        return found[0]
    cause = min(failures, key=lambda rank: (_is_gone(failures[rank]), rank))
    for rank, failure in failures.items():
        log("rank", rank=first + rank, error=type(failure).__name__, reason=str(failure.faults[0]))
    raise failures[cause]


def _is_gone(error: JobError) -> bool:
    return any(fault.message == GONE for fault in error.faults)


def _of_a_card(error: JobError) -> JobError:
    """A crash of native code, which elsewhere is a file's doing, is the device's here."""
    first = error.faults[0]
    if isinstance(error, GateError) and first.message.endswith("native code crashed"):
        return DeviceError(first.message, found=first.found, hint="Try again; if it comes again, on another GPU")
    return error
