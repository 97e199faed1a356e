"""Two processes on one output: one of them works, one manifest is written, and nobody is harmed by the other."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from job.host.log import Log
from job.ledger.lease import Lease
from job.ledger.manifest import verify
from job.store import open_store
from tests.flow.running import ROOT, Running, environment, run_tiny, tiny, tunejob, write_spec
from tests.forking import fork
from tests.servers import S3Server

RACERS = 6


def racer(uri: str) -> None:
    """In a forked process: asks for the lease when all of them are there, holds it for a while and says so."""
    store = open_store(uri)
    sys.stdin.read()  # to its end, which is the same for all
    with Lease(store, Log(io.StringIO())) as lease:
        time.sleep(4)
        lease.require()
        print("held")


def race(uri: str, extra: dict[str, str], scratch: Path) -> list[tuple[int, str]]:
    """(exit code, output) of processes that ask for one lease at the same time."""
    asked = environment(scratch, {**extra, "TUNEJOB_LEASE_SECONDS": "2"})
    outputs = [scratch / f"racer-{number}" for number in range(RACERS)]
    waiting, go = os.pipe()
    racers = []
    for output in outputs:
        with output.open("wb") as out, open(os.devnull, "wb") as nothing:
            streams = (out.fileno(), nothing.fileno())
            racers.append(fork(f"{__name__}:racer", [uri], streams, ROOT, asked, given=waiting))
    os.close(waiting)
    time.sleep(2)
    os.close(go)
    return [(racer.wait(60), output.read_text()) for racer, output in zip(racers, outputs, strict=True)]


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_of_many_that_begin_at_once_one_goes_on(kind: str, s3: S3Server, tmp_path: Path) -> None:
    uri = str(tmp_path / "out") if kind == "directory" else f"s3://{s3.new_bucket()}/run"
    ended = race(uri, s3.environment(), tmp_path)
    held = [code for code, output in ended if "held" in output]
    assert held == [0], ended
    assert all(code != 0 for code, output in ended if "held" not in output), ended


def test_one_manifest_of_two_runs(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{s3.new_bucket()}/run"
    spec = write_spec(tmp_path / "spec.json", tiny(uri, {"/training/max_steps": 12}))
    both = [Running(("run", spec), tmp_path / name, s3.environment()) for name in ("one", "two")]
    codes = sorted(running.finish().exit_code for running in both)
    assert codes in ([0, 0], [0, 20]), codes
    checked = tunejob("verify", uri, scratch=tmp_path / "verify", extra=s3.environment())
    assert checked.exit_code == 0, checked.stdout
    again = tunejob("run", spec, scratch=tmp_path / "again", extra=s3.environment())
    assert again.exit_code == 0
    assert "already published" in again.stdout


def test_a_live_run_is_left_alone(tmp_path: Path) -> None:
    running = Running(
        ("run", write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", {"/training/max_steps": 100_000}))),
        tmp_path / "one",
    )
    running.wait_until(lambda r: r.says('"event": "train"'))
    second = tunejob("run", str(tmp_path / "spec.json"), scratch=tmp_path / "two")
    running.kill()
    assert second.exit_code == 20, second.stdout
    assert second.failure["message"] == "another process is at work on this output"


def test_a_sleeper_is_overtaken_and_does_no_harm(tmp_path: Path) -> None:
    """Its machine was frozen for longer than the lease: when it wakes, it ends, whatever it was doing.

    It had stored nothing yet, so a run of another spec may overtake it, and what that has stored stays.
    """
    sleeper = Running(
        ("run", write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", {"/training/max_steps": 60}))),
        tmp_path / "one",
    )
    sleeper.wait_until(lambda r: r.says('"event": "train"'))
    os.killpg(sleeper.pid, signal.SIGSTOP)
    overtaking = run_tiny(tmp_path, {"/training/max_steps": 30})
    os.killpg(sleeper.pid, signal.SIGCONT)
    woken = sleeper.finish(60)
    assert overtaking.exit_code == 0, overtaking.stdout[-2000:]
    assert woken.exit_code == 20, woken.stdout[-2000:]
    assert "taken over" in woken.last_words
    assert "taken over" in woken.failure["message"]
    assert verify(open_store(str(tmp_path / "out"))).run_id == overtaking.named("published")[0]["run_id"]
