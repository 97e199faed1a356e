"""What a training survives on a GPU: kills at random steps, and a card that is too small for the batch.

    python -m tests.gpu.survive FOLDER [KILLS [small]]

The 1B shape of `bench` with packing and 8-bit AdamW. Beside each other: two undisturbed runs (their distance is the
floor: what two runs of one spec differ by anyway), runs that are killed at random steps and run again each time, five
kills each, one that is asked to stop within a step that takes far longer than a stop may, and, with `small`, some on a
part of the memory. Prints JSON: losses' distances per step, when the stop ended, and what the small ones did.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY, make_model, make_rows, spec_of

STEPS = 20
KILLS_EACH = 5
SMALL_GIB = (2.4, 2.0, 1.7)
LONG_STEP = 32  # micro-batches; half a minute and more, on a card that is shared
LIMIT_SECONDS = 500


class Run:
    """One spec with an output of its own."""

    def __init__(self, folder: Path, name: str, *command: str, accumulation: int | None = None) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.output, self.log = self.folder / "output", self.folder / "log"
        spec = spec_of(folder / "model", folder / "rows.jsonl", self.output, STEPS)
        spec["output"]["checkpoints"] = {"every_steps": 1 if accumulation else 2}
        if accumulation:
            spec["training"]["gradient_accumulation_steps"] = accumulation
        (self.folder / "spec.json").write_text(json.dumps(spec))
        self.command = [
            sys.executable,
            "-m",
            *(command or ("job",)),
            "run",
            str(self.folder / "spec.json"),
            "--log",
            "json",
        ]

    def start(self) -> subprocess.Popen[bytes]:
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "TRITON_CACHE_DIR": str(self.folder / "triton"),
        }
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self.command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | caches | {"TUNEJOB_LEASE_SECONDS": "4"},
            )  # fmt: skip

    def to_end(self) -> int:
        return self.start().wait(LIMIT_SECONDS)

    def step(self) -> int:
        """The last one that is logged."""
        found = re.findall(r'"event": "train".*?"step": (\d+)', self.log.read_text("utf-8", "replace"))
        return int(found[-1]) if found else 0

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [
            json.loads(line)
            for line in self.log.read_text("utf-8", "replace").splitlines()
            if line.startswith('{"time"')
        ]
        return [line for line in lines if line["event"] == name]

    def losses(self) -> list[float]:
        path = self.output / "report" / "losses.jsonl"
        return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


def killed(run: Run, seed: int) -> None:
    """Kills the run some steps after where it went on, again and again, then lets it end."""
    rng, seen, reached = random.Random(seed), [], 0
    for _ in range(KILLS_EACH):
        at = min(reached + rng.randint(2, 5), STEPS - 1)
        process = run.start()
        while run.step() < at and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        process.wait()
        resumed = [event["step"] for event in run.events("resume")]
        reached = max([reached, *(event["step"] for event in run.events("checkpoint"))])
        seen.append({"resumed_from": resumed[0] if resumed else 0, "killed_at": run.step(), "last_stored": reached})
    code = run.to_end()
    seen.append({"resumed_from": run.events("resume")[0]["step"], "exit_code": code})
    print(json.dumps({"kills": seen}), flush=True)


def stopped_within_a_step(run: Run) -> None:
    """SIGTERM early in the second step; then the same spec again, until it says where it goes on."""
    process = run.start()
    while not run.events("checkpoint") and process.poll() is None:
        time.sleep(0.05)
    time.sleep(3)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, seconds = process.wait(LIMIT_SECONDS), round(time.monotonic() - sent, 1)
    step_seconds = run.events("train")[0]["eta_seconds"] / (STEPS - 1)
    seen = {
        "exit_code": code,
        "seconds": seconds,
        "step_seconds": round(step_seconds, 1),
        "stored": run.events("checkpoint"),
    }
    process = run.start()
    while not run.events("resume") and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    print(json.dumps({"stopped_within_a_step": seen | {"resume": run.events("resume")}}), flush=True)


def distance(a: list[float], b: list[float]) -> dict[str, Any]:
    if not a or len(a) != len(b):
        return {"lengths": [len(a), len(b)]}
    differences = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return {
        "largest": max(differences),
        "mean": sum(differences) / len(differences),
        "equal_steps": differences.count(0.0),
    }


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else KILLS_EACH
    folder.mkdir(parents=True, exist_ok=True)
    make_model("1b", folder / "model", REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct")
    make_rows(folder / "rows.jsonl", 4000)
    whole = [Run(folder, f"whole-{i}") for i in range(2)]
    small = [
        Run(folder, f"small-{gib}", "tests.gpu.small_gpu", str(gib)) for gib in SMALL_GIB if "small" in sys.argv[3:]
    ]
    disturbed = [Run(folder, f"killed-{i}") for i in range(math.ceil(kills / KILLS_EACH))]
    long = Run(folder, "long-step", accumulation=LONG_STEP)
    beside = [threading.Thread(target=run.to_end) for run in (*whole, *small)]
    beside += [threading.Thread(target=killed, args=(run, seed)) for seed, run in enumerate(disturbed)]
    beside.append(threading.Thread(target=stopped_within_a_step, args=(long,)))
    for thread in beside:
        thread.start()
    for thread in beside:
        thread.join()
    print(json.dumps({"floor": distance(whole[0].losses(), whole[1].losses())}), flush=True)
    for run in disturbed:
        print(
            json.dumps({"killed": distance(whole[0].losses(), run.losses()), "losses": run.losses()[-3:]}), flush=True
        )
    for gib, run in zip(SMALL_GIB, small, strict=False):
        seen = {"small_gib": gib, "out_of_memory": run.events("out of memory"), "failed": run.events("failed")}
        print(json.dumps(seen | {"distance": distance(whole[0].losses(), run.losses())}), flush=True)


if __name__ == "__main__":
    main()
