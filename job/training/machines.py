"""Several machines that train together: the first runs the job, the others lend it their processes.

What the first one says goes by a store of torch's at TUNEJOB_MEETING, the processes meet at the port after it. Who
starts the machines says which is which (`job.render`: a JobSet, a TrainJob); nothing here starts one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from job.errors import TREE, Fault, InputError, JobError, TransientError
from job.host.signals import cause
from job.host.time_limits import limit

NUMBER, MEETING = "TUNEJOB_MACHINE", "TUNEJOB_MEETING"
HINT = "`tunejob render --to jobset` or trainjob sets both; to run on one machine, leave out resources.nodes"
STATE, HEARD = "state", "heard"
WAITING, TRAINING, OVER = "waiting", "training", "over"
LINGER_SECONDS = 5.0  # for the others to hear how it ended
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Machine:
    """One of `count`, the first of which has number 0. `host` and `port` of where they meet."""

    number: int = 0
    count: int = 1
    host: str = ""
    port: int = 0


def this_machine(count: int) -> Machine:
    """By the environment. Raises `InputError` where that does not say which of several this is."""
    if count == 1:
        return Machine()
    number, meeting = os.environ.get(NUMBER, ""), os.environ.get(MEETING, "")
    host, _, port = meeting.rpartition(":")
    faults = []
    if not (number.isdecimal() and int(number) < count):
        faults.append(Fault("which machine this is", where=NUMBER, found=ascii(number), expected=f"0 to {count - 1}"))
    if not (host and port.isdecimal() and 0 < int(port) < 65535):
        faults.append(Fault("where the machines meet", where=MEETING, found=ascii(meeting), expected="HOST:PORT"))
    if faults:
        raise InputError(*(replace(fault, hint=HINT) for fault in faults))
    return Machine(int(number), count, host, int(port))


_LED: list[tuple[Machine, Any]] = []  # none, or this run's machine and store


@contextmanager
def leading(machine: Machine) -> Iterator[None]:
    """Within, the first machine runs; the others hear how it ends."""
    if machine.count == 1:
        yield
        return
    from torch.distributed import TCPStore

    _LED[:] = [(machine, TCPStore("localhost", machine.port, is_master=True, wait_for_workers=False))]
    _say(WAITING)
    try:
        yield
    finally:
        error = sys.exc_info()[1]
        say_over(cause(error).exit_code if error else 0)
        machine, store = _LED.pop()
        until = time.monotonic() + LINGER_SECONDS
        while store.add(HEARD, 0) < machine.count - 1 and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)


def led() -> Machine:
    """This machine, of which others hear, or the only one."""
    return _LED[0][0] if _LED else Machine()


def say_training() -> None:
    """That its processes wait for those of others."""
    if _LED:
        _say(TRAINING)


def say_over(code: int = 0) -> None:
    """That no process of others is needed any more, as what was trained is stored, or the run has ended with `code`."""
    if _LED and not _LED[0][1].get(STATE).decode().startswith(OVER):
        _say(f"{OVER} {code}")


def _say(state: str) -> None:
    _LED[0][1].set(STATE, state)


class FirstMachine:
    """What another machine hears of it."""

    def __init__(self, machine: Machine) -> None:
        """Raises `TransientError` where it is not there in the limit of a stall."""
        from torch.distributed import TCPStore

        patience = timedelta(minutes=limit("TUNEJOB_STALL_MINUTES"))
        try:
            self._store = TCPStore(machine.host, machine.port, is_master=False, timeout=patience)
            self._store.get(STATE)
        except RuntimeError as error:
            raise _is_gone(error) from error

    def trains(self) -> bool:
        """Waits until it does, or needs nobody. Raises what it has ended with."""
        while (state := self._state()) == WAITING:
            time.sleep(LOOK_SECONDS)
        self.require(state)
        return state == TRAINING

    def until_over(self) -> None:
        """Raises what it ends with."""
        while not (state := self._state()).startswith(OVER):
            time.sleep(LOOK_SECONDS)
        self._store.add(HEARD, 1)
        self.require(state)

    def require(self, state: str | None = None) -> None:
        """Raises what it has ended with, if it has, and not well."""
        words = (state or self._state()).split()
        code = int(words[1]) if words[0] == OVER else 0
        if code:
            kind = next((kind for kind in TREE if kind.exit_code == code), JobError)
            raise kind(f"the first machine ended with {code}", hint="Its log says why")

    def _state(self) -> str:
        try:
            found: str = self._store.get(STATE).decode()
        except RuntimeError as error:
            raise _is_gone(error) from error
        return found


def _is_gone(error: Exception) -> TransientError:
    return TransientError("the first machine does not answer", where=MEETING, found=str(error).splitlines()[0])
