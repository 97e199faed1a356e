"""What it means that a child process has ended without an answer."""

from __future__ import annotations

import signal

from job.errors import TREE, CapacityError, GateError, JobError, TransientError

CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}


def death(what: str, code: int, planned_bytes: int | None, taken_bytes: int) -> JobError:
    """`code`: negative for a signal. `taken_bytes`: of memory, at its peak."""
    if code == -signal.SIGKILL:
        planned = "" if planned_bytes is None else f"{planned_bytes} bytes"
        return CapacityError(
            f"{what}: its process was killed, as happens when memory runs out",
            where="",
            found=f"{taken_bytes} bytes taken",
            expected=planned,
            hint="Give the job more memory",
        )
    if -code in CRASHES:
        name, hint = signal.Signals(-code).name, "Its last output is beside this message"
        return GateError(f"{what}: native code crashed", found=name, hint=hint)
    if code < 0:
        return TransientError(f"{what}: its process was ended by {signal.Signals(-code).name}")
    if code == CapacityError.exit_code:
        return CapacityError(f"{what}: the disk is full: its process could not even write down its result")
    kind = next((kind for kind in TREE if kind.exit_code == code), JobError)  # a watchdog has no time for an answer
    return kind(f"{what}: its process ended with code {code}; its last output says why")
