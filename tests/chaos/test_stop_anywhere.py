"""SIGTERM at random times, with and without exports: within the grace period exit 30, and no manifest but a true one.

TUNEJOB_CHAOS_STOPS says how many times; `make chaos` sets it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from job.ledger.manifest import MANIFEST, verify
from job.store import open_store
from tests.flow.running import Running, tiny, write_spec
from tests.flow.test_signals import handles
from tests.tiny import narrow_dir

STOPS = int(os.environ.get("TUNEJOB_CHAOS_STOPS", "3"))
LIMIT_SECONDS = 12
LATEST_SECONDS = 40 if STOPS > 3 else 8  # a forked run has begun to train after four
ENDLESS: dict[str, Any] = {"/training/max_steps": 100_000, "/output/checkpoints": {"every_steps": 20}}
EXPORTED: dict[str, Any] = {
    "/model/source": str(narrow_dir()),
    "/export": {"merged": ["16bit"], "gguf": ["q8_0"]},
    "/output/checkpoints": {"every_steps": 2},
}


def test_at_random_times(tmp_path: Path) -> None:
    chance = random.Random(STOPS)
    seconds = []
    for number in range(STOPS):
        folder = tmp_path / str(number)
        taken, code = stopped(folder, EXPORTED if number % 2 else ENDLESS, chance.uniform(0, LATEST_SECONDS))
        print(f"{number}: exit {code} after {taken:.1f} s", flush=True)
        published = (folder / "out" / MANIFEST).exists()
        if published:
            verify(open_store(str(folder / "out")))
        assert code == 30 or (code == 0 and published)  # it may have been quicker
        seconds.append(taken)
    assert sorted(seconds)[int(0.99 * len(seconds))] < LIMIT_SECONDS, seconds  # the longest, of less than a hundred


def stopped(folder: Path, changes: dict[str, Any], delay_seconds: float) -> tuple[float, int]:
    """Seconds from the signal to the end, and the exit code; `delay_seconds` count from when the command handles it."""
    running = Running(("run", write_spec(folder / "spec.json", tiny(folder / "out", changes))), folder / "scratch")
    running.wait_until(lambda r: handles(r.pid, signal.SIGTERM), 30)
    time.sleep(delay_seconds)
    sent = time.monotonic()
    running.signal(signal.SIGTERM)
    result = running.finish(60)
    return time.monotonic() - sent, result.exit_code
