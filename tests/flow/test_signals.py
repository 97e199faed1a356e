"""Stop signals at every stage: exit 30 within the grace period, nothing published, and the message says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from job.ledger.manifest import verify
from job.spec.strict import StrictValidator, load_schema
from job.store import open_store
from tests.flow.running import DEMO, ROOT, Result, Running, document, environment, run_tiny, tiny, write_spec
from tests.flow.stalling import wire
from tests.servers import S3Server

STOP_SECONDS = 12
TERM, INT = signal.SIGTERM, signal.SIGINT


def start(
    folder: Path, changes: dict[str, object], extra: dict[str, str] | None = None, forked: bool | None = None
) -> Running:
    spec = tiny(folder / "out", changes)
    return Running(("run", write_spec(folder / "spec.json", spec)), folder / "scratch", extra, forked=forked)


def stopped(running: Running, number: signal.Signals, folder: Path) -> Result:
    """Sends the signal and checks the end."""
    sent = time.monotonic()
    running.signal(number)
    result = running.finish(60)
    assert time.monotonic() - sent < STOP_SECONDS
    assert result.exit_code == 30, result.stdout[-2000:] + result.stderr[-2000:]
    facts = json.loads(result.last_words)
    StrictValidator(load_schema("failure")).validate(facts)
    assert (facts["class"], facts["exit_code"], facts["retryable"]) == ("Interrupted", 30, True)
    assert not (folder / "out" / "manifest.json").exists()
    return result


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether the kernel knows of a handler of the process for the signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize("number", [TERM, INT])
def test_at_start_up(number: signal.Signals, tmp_path: Path) -> None:
    running = start(tmp_path, {}, forked=False)
    running.wait_until(lambda r: handles(r.pid, TERM), 10)
    libraries = Path(f"/proc/{running.pid}/maps").read_text()
    assert "libtorch" not in libraries, "the handler comes before heavy imports"
    result = stopped(running, number, tmp_path)
    assert result.failure["message"] == f"stopped by {number.name}"


def test_while_rows_become_tokens(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text((DEMO / "train.jsonl").read_text() * 200)
    running = start(tmp_path, {"/data/train/0": {"source": str(rows), "format": "messages"}})
    running.wait_until(lambda r: r.says('"event": "data", "done"'))
    result = stopped(running, INT, tmp_path)
    assert result.failure["stage"] == "data"
    left_over = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _group(p) == running.pid]
    assert left_over == [], "workers have ended too"


def _group(process: Path) -> int:
    """The process group, 0 for one that has just ended."""
    try:
        return os.getpgid(int(process.name))
    except ProcessLookupError:
        return 0


def test_during_training(tmp_path: Path) -> None:
    running = start(tmp_path, {"/training/max_steps": 100_000})
    running.wait_until(lambda r: r.says('"event": "train"'))
    result = stopped(running, TERM, tmp_path)
    assert result.failure["stage"] == "train"
    stats = document(tmp_path / "out" / "stats.json")
    assert stats["status"] == "failed"
    assert stats["failure"]["class"] == "Interrupted"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"spec.json", "stats.json", "report", "checkpoints"}


def short_and_long_step(folder: Path, accumulation: int) -> dict[str, object]:
    """Two steps: `accumulation` micro-batches of eight short rows, and as many of long ones."""
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for words in (1, 400):
            for _ in range(8 * accumulation):
                messages = [{"role": "user", "content": "go " * words}, {"role": "assistant", "content": "so"}]
                file.write(json.dumps({"messages": messages}) + "\n")
    return {
        "/data/train/0": {"source": str(rows), "format": "messages"},
        "/data/shuffle": False, "/model/max_seq_length": 512,
        "/training/batch_size": 8, "/training/gradient_accumulation_steps": accumulation, "/training/max_steps": 2,
        "/output/checkpoints": {"every_steps": 1},
    }  # fmt: skip


def test_in_the_last_step(tmp_path: Path) -> None:
    """It is ended and stored; the next try has no step left, and publishes without what the first left to be read."""
    changes = short_and_long_step(tmp_path, 2) | {"/tracking": ["tensorboard"]}
    running = start(tmp_path, changes, {"TUNEJOB_STOP_SECONDS": "100"})
    running.wait_until(lambda r: r.says('"event": "checkpoint", "step": 1'))
    running.signal(TERM)
    assert running.finish(120).exit_code == 30
    curves = {path.name for path in (tmp_path / "out" / "report" / "tensorboard").iterdir()}
    assert curves
    result = run_tiny(tmp_path, changes)
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert [event["step"] for event in result.named("resume")] == [2]
    assert not curves & {Path(file.key).name for file in verify(open_store(str(tmp_path / "out"))).files}
    assert document(tmp_path / "out" / "stats.json")["training"]["median_step_seconds"] is None


def test_in_a_step_that_outlasts_the_budget(tmp_path: Path) -> None:
    """Short rows make the first step, long ones a second of half a minute: given up after the three seconds."""
    running = start(tmp_path, short_and_long_step(tmp_path, 64), {"TUNEJOB_STOP_SECONDS": "3"})
    running.wait_until(lambda r: r.says('"event": "checkpoint", "step": 1'))
    time.sleep(1)
    sent = time.monotonic()
    result = stopped(running, TERM, tmp_path)
    assert time.monotonic() - sent > 2, "the step would have ended in time"
    assert result.failure["stage"] == "train"
    assert [path.parent.name for path in (tmp_path / "out" / "checkpoints").rglob("checkpoint.json")] == [
        "step-00000001"
    ]


def test_during_publish(s3: S3Server, tmp_path: Path) -> None:
    """The store answers nothing any more; the budget ends the run all the same."""
    bucket = s3.new_bucket()
    with wire(s3.http, b"/report/summary.md") as held:
        extra = s3.environment() | {"AWS_ENDPOINT_URL": held.endpoint}
        running = start(tmp_path, {"/output/uri": f"s3://{bucket}/run"}, extra)
        running.wait_until(lambda _: held.held.is_set())
        stopped(running, TERM, tmp_path)
    stored = {item["Key"] for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]}
    assert "run/adapter/adapter_model.safetensors" in stored
    assert "run/manifest.json" not in stored


def test_while_a_failure_is_reported(tmp_path: Path) -> None:
    """The exit code stays that of the failure: here the signal comes while nobody reads the termination message yet."""
    pipe = tmp_path / "words"
    os.mkfifo(pipe)
    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    running = Running(("run", str(spec)), tmp_path / "scratch", {"TUNEJOB_TERMINATION_LOG": str(pipe)})
    running.wait_until(lambda r: handles(r.pid, TERM), 10)
    running.wait_until(lambda r: at_rest(r.pid), 60)
    running.signal(TERM)
    time.sleep(0.3)
    facts = json.loads(pipe.read_text())
    assert (running.finish(20).exit_code, facts["class"]) == (10, "SpecError")


def at_rest(pid: int) -> bool:
    """Whether the process waits for something: it sleeps, and has done nothing for a second."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(1)
    return process.status() == psutil.STATUS_SLEEPING and process.cpu_times() == before


# Gets the signal when Python takes its modules apart, and with them `last`.
STOPPED_LAST = """
import os, signal, sys
from job.__main__ import main

class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

last = Last()
sys.exit(main(sys.argv[1:]))
"""


def test_in_its_last_moments(tmp_path: Path) -> None:
    """The exit code stays what the run has ended with, though Python has put the system's handlers back by then."""
    command = [sys.executable, "-c", STOPPED_LAST, "run", write_spec(tmp_path / "spec.json", {})]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, check=False)
    assert done.returncode == 10, done.stderr[-2000:]


def test_a_second_signal_ends_it_at_once(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.new_bucket()
    with wire(s3.http, b"/run/checkpoints/lease") as held:
        extra = s3.environment() | {"AWS_ENDPOINT_URL": held.endpoint, "TUNEJOB_STOP_SECONDS": "60"}
        running = start(tmp_path, {"/output/uri": f"s3://{bucket}/run", "/model/source": f"s3://{bucket}/none"}, extra)
        running.wait_until(lambda _: held.held.is_set(), 20)
        running.signal(TERM)
        time.sleep(0.3)
        sent = time.monotonic()
        running.signal(TERM)
        result = running.finish(20)
    assert result.exit_code == 30
    assert time.monotonic() - sent < 2
    assert json.loads(result.last_words)["class"] == result.failure["class"] == "Interrupted"
