"""What a training survives on a GPU: kills at random steps, and a card that is too small for the batch.

    python -m tests.gpu.survive FOLDER [KILLS]

The 1B shape of `bench` with packing and 8-bit AdamW. Beside each other: two undisturbed runs (their distance is the floor: what
two runs of one spec differ by anyway), one that is killed at random steps and run again each time, and some on a part of the
memory. Prints JSON: losses' distances per step, and what the small ones did.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY, make_model, make_rows, spec_of

STEPS = 20
SMALL_GIB = (2.4, 2.0, 1.7)
LIMIT_SECONDS = 500


class Run:
    """One spec with an output of its own."""

    def __init__(self, folder: Path, name: str, *command: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.output, self.log = self.folder / "output", self.folder / "log"
        spec = spec_of(folder / "model", folder / "rows.jsonl", self.output, STEPS)
        spec["output"]["checkpoints"] = {"every_steps": 2}
        (self.folder / "spec.json").write_text(json.dumps(spec))
        self.command = [sys.executable, "-m", *(command or ("job",)), "run", str(self.folder / "spec.json"), "--log", "json"]

    def start(self) -> subprocess.Popen[bytes]:
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"), "TRITON_CACHE_DIR": str(self.folder / "triton")}
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
        lines = [json.loads(line) for line in self.log.read_text("utf-8", "replace").splitlines() if line.startswith('{"time"')]
        return [line for line in lines if line["event"] == name]

    def losses(self) -> list[float]:
        path = self.output / "report" / "losses.jsonl"
        return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


def killed(run: Run, kills: int) -> list[dict[str, int]]:
    """Kills the run some steps behind where it went on, again and again, then lets it end."""
    rng, told, reached = random.Random(0), [], 0
    for _ in range(kills):
        at = min(reached + rng.randint(2, 5), STEPS - 1)
        process = run.start()
        while run.step() < at and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        process.wait()
        resumed = [event["step"] for event in run.events("resume")]
        reached = max([reached, *(event["step"] for event in run.events("checkpoint"))])
        told.append({"resumed_from": resumed[0] if resumed else 0, "killed_at": run.step(), "last_stored": reached})
    code = run.to_end()
    told.append({"resumed_from": run.events("resume")[0]["step"], "exit_code": code})
    return told


def distance(a: list[float], b: list[float]) -> dict[str, Any]:
    if not a or len(a) != len(b):
        return {"lengths": [len(a), len(b)]}
    differences = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return {"largest": max(differences), "mean": sum(differences) / len(differences), "equal_steps": differences.count(0.0)}


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    folder.mkdir(parents=True, exist_ok=True)
    make_model("1b", folder / "model", REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct")
    make_rows(folder / "rows.jsonl", 4000)
    whole = [Run(folder, f"whole-{i}") for i in range(2)]
    small = [Run(folder, f"small-{gib}", "tests.gpu.small_gpu", str(gib)) for gib in SMALL_GIB]
    beside = [threading.Thread(target=run.to_end) for run in (*whole, *small)]
    for thread in beside:
        thread.start()
    disturbed = Run(folder, "killed")
    print(json.dumps({"kills": killed(disturbed, kills)}), flush=True)
    for thread in beside:
        thread.join()
    print(json.dumps({"floor": distance(whole[0].losses(), whole[1].losses())}), flush=True)
    print(json.dumps({"killed": distance(whole[0].losses(), disturbed.losses()), "losses": disturbed.losses()[-3:]}), flush=True)
    for gib, run in zip(SMALL_GIB, small, strict=True):
        told = {"small_gib": gib, "out_of_memory": run.events("out of memory"), "failed": run.events("failed")}
        print(json.dumps(told | {"distance": distance(whole[0].losses(), run.losses())}), flush=True)


if __name__ == "__main__":
    main()
