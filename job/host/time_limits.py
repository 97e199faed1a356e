"""Time limits: what each is by default, and what the environment says instead."""

from __future__ import annotations

import os
from contextlib import suppress

from job.errors import Fault, InputError

DEFAULTS = {
    "TUNEJOB_STOP_SECONDS": 8.0,  # from a stop signal to a hard end
    "TUNEJOB_LEASE_SECONDS": 45.0,  # without a sign of life, after which the output's holder is taken for dead
    "TUNEJOB_STALL_MINUTES": 30.0,  # without a step or, of several processes, a pass, after which it ends
    "TUNEJOB_S3_PATIENCE_SECONDS": 300.0,  # how long a failing request is repeated: a store is restarted in less
    "TUNEJOB_S3_READ_SECONDS": 60.0,  # how long a server may be silent
    "TUNEJOB_S3_REQUEST_SECONDS": 100.0,  # how long one request may take, 16 MiB at most: 168 kB/s
    "TUNEJOB_HUB_PATIENCE_SECONDS": 180.0,  # the Hub's: the client's own tries may add twice as much
    "TUNEJOB_HUB_PAUSE_SECONDS": 1.0,  # before the second try; twice as long before each other
    "TUNEJOB_HUB_WINDOW_SECONDS": 30.0,  # in which 1 MiB has to come: 35 kB/s
    "TUNEJOB_JUDGE_SECONDS": 120.0,  # how long one answer of a judge may take
    "TUNEJOB_JUDGE_PAUSE_SECONDS": 1.0,  # before its second try, unless it says when; twice as long before each other
}


LONGEST = 1e6  # threads cannot wait for ever


def limit(variable: str) -> float:
    """In the unit of its name. Raises `InputError` unless it is a number above zero, and one that can be waited for."""
    said = os.environ.get(variable) or str(DEFAULTS[variable])
    with suppress(ValueError):
        if 0 < float(said) <= LONGEST:
            return float(said)
    unit = variable.rsplit("_", 1)[-1].lower()
    raise InputError(
        f"{variable} is not a time limit", found=ascii(said), expected=f"{unit} above 0 and up to {LONGEST:.0f}"
    )


def check_limits() -> None:
    """Every one of them, before anything is begun. Raises `InputError` for those that are not limits."""
    faults: list[Fault] = []
    for variable in DEFAULTS:
        try:
            limit(variable)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)
