"""The processes that hold one model together, one for each card of this machine: starts them, asks them, sees them to
their end.

They get what torchrun gives its own, and this in its place: a stop signal reaches every process and the step that runs
is stored, the end of one ends the others, and each says in its own words what it ended with. The first writes the
events, and has the run's credentials: it stores the checkpoints. The lease stays with the run.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from job.errors import DeviceError, GateError, Interrupted, JobError
from job.evaluation.shares import Share
from job.host.cgroup import usable_cores
from job.host.child import Child, without_secrets
from job.host.conversation import END, Asking
from job.host.device import VISIBLE, cards
from job.host.log import Bar, Log
from job.host.records import build
from job.host.signals import stop_requested, stopped
from job.hub.origin import without_hub
from job.spec import JobSpec
from job.training.alive import Alive
from job.training.machines import Machine
from job.training.ranks import GONE, RankPlace

ASKED, GIVEN = ".asked", ".given"  # beside the log: that the output be claimed, and that it is
# What they are asked, in messages
DOING = {"load": "loading", "measure": "measuring", "train": "training", "export": "writing what was trained"}
MET = ".met"  # that the process has met the others
LOOK_SECONDS = 0.02
LAST_WORDS_SECONDS = 5.0  # for those that meet to end with reasons of their own, once one has failed
END_SECONDS = 10.0
# They are on one machine; a container's name may resolve to nothing
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True)
class MemberRequest:
    """What a process is, before it is asked anything. `place`: among all that train; `share`: among those of this
    machine, who measure. `workdir`: scratch, this process's alone.
    """

    spec: JobSpec
    device: str
    workdir: Path
    place: RankPlace
    share: Share


@dataclass(frozen=True)
class MemberAnswer:
    """`result` as JSON gives it; the most that PyTorch held of the card's memory meanwhile."""

    result: Any
    peak_allocated_bytes: int
    peak_reserved_bytes: int


class Team:
    """The processes of this machine. As a context manager it ends them whatever happens."""

    def __init__(
        self, module: str, count: int, spec: JobSpec, device: str, workdir: Path, log: Log, machine: Machine
    ) -> None:
        """Starts `count` processes of `module`, whose `handle` gets a `MemberRequest`; one on each of the machines'."""
        folder = workdir / "together"
        folder.mkdir(exist_ok=True)
        meeting = (
            f"file://{folder / uuid.uuid4().hex}" if machine.count == 1 else f"tcp://{machine.host}:{machine.port + 1}"
        )
        threads, first, whole = max(1, usable_cores() // count), machine.number * count, machine.count * count
        self.places = [
            RankPlace(rank, whole, meeting, folder / f"rank-{rank}.jsonl", threads, rank - first, machine.number)
            for rank in range(first, first + count)
        ]  # fmt: skip
        self._log, self._leads = log, machine.number == 0
        self._members: list[Child] = []
        self._asking = [Asking(place.said) for place in self.places]
        self._events: list[Iterator[list[dict[str, Any]]]] = []
        for place in self.places:
            for left in folder.glob(f"{place.said.stem}.*"):  # by processes before
                left.unlink()
            place.said.write_bytes(b"")
            self._events.append(_events(place.said))
            request = MemberRequest(spec, device, workdir, place, Share(place.local, count))
            self._members.append(_start(module, request, folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.kill()

    def end(self) -> None:
        """They end by themselves: nothing is left to ask."""
        for asking in self._asking:
            asking.ask(END, None)
        until = time.monotonic() + END_SECONDS
        while time.monotonic() < until and not all(member.ended() for member in self._members):
            time.sleep(LOOK_SECONDS)
        self.__exit__()

    def ask(
        self, what: str, request: Any, bars: Callable[[str], Bar], first_alone: bool = False,
        look: Callable[[], None] = lambda: None, meet: bool = False, says_alive: bool = False,
    ) -> list[MemberAnswer]:  # fmt: skip
        """The answers of all, or of the first alone, in their order. `bars`: makes the bar of a name, which shows how
        far they are. `look` is called all the time: what it raises ends the asking. With `meet` they meet each other.
        With `says_alive` one that does not ends the asking; without, one that is far behind another.

        Raises what one of them has ended with, and `Interrupted` once a stop signal's step is stored.
        """
        asked = list(range(1 if first_alone else len(self._members)))
        for place in self.places:
            place.said.with_suffix(MET).unlink(missing_ok=True)
        for local in asked:
            self._asking[local].ask(what, request)
        shown, alive = _Shown(bars), Alive([place.said for place in self.places], says_alive)

        def look_all() -> None:
            self._relay(shown, alone=meet or first_alone)
            look()
            left = [local for local in asked if not self._asking[local].answered()]
            for local in left if says_alive or len(left) < len(asked) else []:
                if not self._members[local].ended():
                    alive.require(local, self._doing(local, what))

        def met() -> bool:
            return not meet or all(place.said.with_suffix(MET).exists() for place in self.places)

        try:
            by_force = self._follow(asked, look_all, met, LAST_WORDS_SECONDS if meet else 0.0)
            look_all()
        finally:
            shown.end()
        if any(member.ended() for member in self._members):
            raise self._failure(by_force, what)
        return [build(MemberAnswer, self._asking[local].answer()) for local in asked]

    def claim_if_asked(self, claim: Callable[[], None]) -> None:
        """Has the run claim its output where the first process waits for that."""
        asked, given = (self.places[0].said.with_suffix(suffix) for suffix in (ASKED, GIVEN))
        if asked.exists():
            claim()
            asked.unlink()
            given.touch()

    def _follow(
        self, asked: Sequence[int], look: Callable[[], None], met: Callable[[], bool], last_words_seconds: float
    ) -> set[int]:
        """Waits until all have answered, or all have ended; those that were ended by force, so long after a failure, or
        by a stop before `met`.
        """
        stopping, failed_at, by_force, members = False, 0.0, set[int](), self._members
        while running := [local for local, member in enumerate(members) if not member.ended()]:
            look()
            codes = {member.exit_code for member in members}
            if codes == {None} and all(self._asking[local].answered() for local in asked):
                break
            if not stopping and (stop_requested() or Interrupted.exit_code in codes):
                stopping = True
                for local in running:
                    members[local].stop()
            # After a stop the others have the time of the stop itself to store what there is
            if not failed_at and codes - {None, Interrupted.exit_code}:
                failed_at = time.monotonic()
            # One that waits for another in native code hears no signal, and has nothing to store
            gave_up = failed_at and time.monotonic() - failed_at >= last_words_seconds
            if gave_up or (stopping and not met()):
                by_force.update(running)
                for local in running:
                    members[local].kill()
            time.sleep(LOOK_SECONDS)
        return by_force

    def _doing(self, local: int, what: str) -> str:
        """Which process it is, and what it was asked to do."""
        return f"{self.places[local].name}, {DOING[what]}"

    def _relay(self, shown: _Shown, alone: bool) -> None:
        """What the first process has said since, as if the run had said it; how far all are, or the first `alone`."""
        if not self._leads:
            return
        for local, events in enumerate(self._events):
            for record in next(events):
                event = record.pop("event")
                record.pop("time", None)
                if "done" in record and "total" in record:
                    if local == 0 or not alone:
                        shown.update(event, local, record)
                elif local == 0:
                    self._log(event, **record)

    def _failure(self, by_force: set[int], what: str) -> JobError:
        """What says most of it: that another is gone says least. They were asked `what`."""
        failures: dict[int, JobError] = {}
        for local, member in enumerate(self._members):
            try:
                member.wait(self._doing(local, what))
            except JobError as error:
                if local not in by_force:
                    failures[local] = _of_a_card(error)
        if not failures:
            return stopped()
        for local in sorted(by_force):
            self._log("note", text=f"{self.places[local].name} said nothing more and was ended")
        for local, failure in failures.items():
            rank = self.places[local].rank
            self._log("rank", rank=rank, error=type(failure).__name__, reason=str(failure.faults[0]))
        return failures[min(failures, key=lambda local: (_is_gone(failures[local]), local))]


class _Shown:
    """Bars of what several processes do, by their names."""

    def __init__(self, bars: Callable[[str], Bar]) -> None:
        self._make = bars
        self._bars: dict[str, Bar] = {}
        self._known: dict[str, dict[int, tuple[int, int]]] = {}

    def update(self, name: str, whose: int, record: dict[str, Any]) -> None:
        if name not in self._bars:
            self._bars[name] = self._make(name).begin()
        known = self._known.setdefault(name, {})
        known[whose] = record.pop("done"), record.pop("total") or 0
        bar = self._bars[name]
        bar.total = sum(total for _, total in known.values())
        bar.update(sum(done for done, _ in known.values()), **record)

    def end(self) -> None:
        for bar in self._bars.values():
            bar.end()


def _start(module: str, request: MemberRequest, folder: Path) -> Child:
    """The first works where a run by itself would; the others have scratch of their own, and store nothing."""
    place = request.place
    what, environment = f"{place.name} of the training", environment_of(place)
    if request.device == "cuda":
        environment[VISIBLE] = cards()[place.local]
    if request.spec.model.backend != "unsloth":
        return Child(module, request, folder, what, further=environment)  # forked
    return Child(module, request, folder, what, environment)


def environment_of(place: RankPlace) -> dict[str, str]:
    """The run's own without the Hub, as everything is fetched for them, and how its processes meet; without what is
    secret for those that store nothing.
    """
    loopback = LOOPBACK if place.meeting.startswith("file") else {}
    found = loopback | without_hub(os.environ) | {"OMP_NUM_THREADS": str(place.threads)}
    if place.rank == 0:
        return found
    # It writes there as if it were alone
    return without_secrets(found) | {"UNSLOTH_COMPILE_LOCATION": str(place.workdir / "unsloth")}


def _events(said: Path) -> Iterator[list[dict[str, Any]]]:
    """Each time, the events that were written to this file since."""
    with said.open(encoding="utf-8") as file:
        while True:
            found = []
            while True:
                at = file.tell()
                line = file.readline()
                if not line.endswith("\n"):
                    file.seek(at)  # it is being written
                    break
                with suppress(ValueError):
                    found.append(json.loads(line))
            yield found


def _is_gone(error: JobError) -> bool:
    return any(fault.message == GONE for fault in error.faults)


def _of_a_card(error: JobError) -> JobError:
    """A crash of native code, which elsewhere is a file's doing, is the device's here."""
    first = error.faults[0]
    if isinstance(error, GateError) and first.message.endswith("native code crashed"):
        return DeviceError(first.message, found=first.found, hint="Try again; if it comes again, on another GPU")
    return error
