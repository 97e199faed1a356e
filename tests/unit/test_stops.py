"""A stop is never taken for something that a run can do without."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest

from job.errors import Fault, Interrupted, TransientError
from job.host.log import Log
from job.host.signals import stopped
from job.ledger.leftovers import discard, optional
from job.preview.seen import Seen
from job.tracking.follow import Followed


def stop(*_: Any) -> None:
    raise stopped()


def fail(*_: Any) -> None:
    raise TransientError(Fault("not now"))


def ways(log: Log, what: Any) -> dict[str, Any]:
    followed = Followed((), cast("Any", None), log)
    return {
        "what is optional": lambda: within(log, what),
        "what is left over": lambda: discard(cast("Any", SimpleNamespace(delete=what)), ["key"], log),
        "what a tracker gets": lambda: followed._attempt("wandb", what),
        "what is looked at": lambda: Seen().attempt(what),
    }


def within(log: Log, what: Any) -> None:
    with optional(log, "a note"):
        what()


@pytest.mark.parametrize("way", ["what is optional", "what is left over", "what a tracker gets", "what is looked at"])
def test_a_stop_goes_on_and_a_failure_does_not(way: str) -> None:
    log = Log(io.StringIO(), json_lines=True)
    ways(log, fail)[way]()
    with pytest.raises(Interrupted):
        ways(log, stop)[way]()
