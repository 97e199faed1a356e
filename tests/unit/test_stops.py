"""A stop is never taken for something that a run can do without."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
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


MAKES_A_FOLDER = """
import os, signal, tempfile
from job.host.signals import install
from job.host.temporary_folder import temporary_folder
make = tempfile.mkdtemp
def make_and_be_stopped(*given, **named):
    made = make(*given, **named)
    os.kill(os.getpid(), signal.SIGTERM)
    return made
tempfile.mkdtemp = make_and_be_stopped
install(lambda error: None)
with temporary_folder("tunejob-"):
    print("entered")
"""
LEAVES_A_FOLDER = """
import os, signal
from pathlib import Path
from job.host.signals import install
from job.host.temporary_folder import temporary_folder
remove = os.rmdir
def be_stopped_and_remove(*given, **named):
    os.rmdir = remove
    os.kill(os.getpid(), signal.SIGTERM)
    return remove(*given, **named)
install(lambda error: None)
with temporary_folder("tunejob-") as folder:
    (folder / "of").mkdir()
    Path(folder, "rows").touch()
    os.rmdir = be_stopped_and_remove
"""


@pytest.mark.parametrize("script", [MAKES_A_FOLDER, LEAVES_A_FOLDER], ids=["made", "removed"])
def test_a_stop_while_a_folder_is_made_or_removed_leaves_none(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], env={"TMPDIR": str(tmp_path)}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Interrupted: stopped by SIGTERM" in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
