"""What a training leaves, by what computes its steps: the engine alone, twice; this project's kernels; fp8.

    python -m tests.gpu.computes FOLDER ROWS [COMPUTE ...]        needs an NVIDIA GPU; ROWS: instruction, input, output

SmolLM2-135M in 4 bits on real rows, two epochs, a fifth held out; runs beside each other. Prints a JSON line for each:
loss of the held-out rows before and after in the trained model, token F1 of 100 answers with its interval, the last
losses, and what was computed how.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY

RUNS = ("stock", "stock", "auto", "fp8")
MODEL = REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct"


def spec_of(compute: str, rows: Path, output: Path) -> dict[str, Any]:
    return {
        "version": 1, "name": "computes",
        "model": {"source": str(MODEL), "precision": "4bit", "max_seq_length": 512},
        "data": {"train": [{"source": str(rows), "format": "alpaca"}], "held_out": {"fraction": 0.2},
                 "chat_template": "chatml"},
        "lora": {"r": 16, "alpha": 32},
        "training": {"epochs": 2, "batch_size": 16, "gradient_accumulation_steps": 1, "learning_rate": 5e-4,
                     "warmup_ratio": 0.05, "eval_batch_size": 16, "compute": compute},
        "evaluation": {"metrics": ["token_f1"], "exact_match_rows": 100, "max_new_tokens": 48},
        "output": {"uri": str(output)},
    }  # fmt: skip


def run(number: int, compute: str, rows: Path, folder: Path) -> dict[str, Any]:
    spec, output = folder / f"{number}.json", folder / f"{number}-{compute}"
    spec.write_text(json.dumps(spec_of(compute, rows, output)))
    done = subprocess.run([sys.executable, "-m", "job", "run", str(spec), "--log", "json"], cwd=REPOSITORY,
                          capture_output=True, text=True, check=False)  # fmt: skip
    (folder / f"{number}.log").write_text(done.stdout + done.stderr)
    found: dict[str, Any] = {"compute": compute, "exit": done.returncode, "stages": stages(done.stdout)}
    if (output / "stats.json").is_file():
        stats = json.loads((output / "stats.json").read_text())
        lines = (output / "report" / "losses.jsonl").read_text().splitlines()
        found |= {"computed": stats["training"]["compute"], "evaluation": stats["evaluation"], "step_seconds":
                  stats["training"]["median_step_seconds"],
                  "losses": [json.loads(line)["loss"] for line in lines]}  # fmt: skip
    return found


def stages(said: str) -> dict[str, str]:
    """When each event came for the first time."""
    events = [json.loads(line) for line in said.splitlines() if line.startswith('{"time"')]
    return {event["event"]: event["time"] for event in reversed(events)}


def main() -> None:
    folder, rows, asked = Path(sys.argv[1]), Path(sys.argv[2]).resolve(), sys.argv[3:] or list(RUNS)
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(asked)) as pool:
        for done in as_completed([pool.submit(run, *item, rows, folder) for item in enumerate(asked)]):
            print(json.dumps(done.result()), flush=True)


if __name__ == "__main__":
    main()
