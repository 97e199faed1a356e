"""What the job chooses by itself on a GPU: the losses of an explicit setting, and a guess that turns out wrong.

    python -m tests.gpu.choices FOLDER

The 1B shape of `bench`. Beside each other: two runs of an explicit setting (their distance is the floor), one that
chooses, and one that chooses, is killed, and goes on where PyTorch may use `SMALL_GIB`. Then one that chooses, after
which somebody else takes the memory it counted on. Prints JSON: distances of the losses, exit codes, what was chosen
and what came after.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY, make_rows
from tests.gpu.survive import LIMIT_SECONDS, STEPS, Run, distance

EXPLICIT = {"micro_batch": 8, "gradient_checkpointing": "unsloth"}
SMALL_GIB = "4"
LEFT_GIB = 8  # of the card, once the choice is made
KILLED_AT = 8
# Opens the card at once, and takes what is free but for some GiB when a line arrives.
FILLER = """
import sys, torch
torch.zeros(1, device="cuda")
print("ready", flush=True)
sys.stdin.readline()
taken = torch.empty(max(torch.cuda.mem_get_info()[0] - int(sys.argv[1]) * 2**30, 1), dtype=torch.uint8, device="cuda")
print("filled", flush=True)
sys.stdin.readline()
"""


def described(run: Run) -> dict[str, Any]:
    keys = ("micro_batch", "batch_size", "gradient_accumulation_steps", "kept_layers", "reason", "step")
    return {
        name: [{key: event[key] for key in keys if key in event} for event in run.events(name)]
        for name in ("steps", "out of memory", "resume")
    }


def with_settings(run: Run, **training: Any) -> Run:
    path = run.folder / "spec.json"
    document = json.loads(path.read_text())
    document["training"] |= training
    path.write_text(json.dumps(document))
    return run


def moved(run: Run) -> dict[str, Any]:
    """Killed, and run again where there is less memory."""
    process = run.start()
    while run.step() < KILLED_AT and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = described(run)["steps"]
    run.command[2:3] = ["tests.gpu.small_gpu", SMALL_GIB]
    return {"exit_code": run.to_end(), "before": before, "after": described(run), "steps": len(run.losses())}


def filled(run: Run) -> dict[str, Any]:
    filler = subprocess.Popen(
        [sys.executable, "-c", FILLER, str(LEFT_GIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert filler.stdin
    assert filler.stdout
    assert filler.stdout.readline() == "ready\n"
    process = run.start()
    while not run.events("steps") and process.poll() is None:
        time.sleep(0.01)
    filler.stdin.write("\n")
    filler.stdin.flush()
    assert filler.stdout.readline() == "filled\n"
    code = process.wait(LIMIT_SECONDS)
    filler.kill()
    filler.wait()
    return {"exit_code": code, **described(run), "steps_done": len(run.losses())}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    model = REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct"
    subprocess.run([sys.executable, "-c", MAKE, str(folder / "model"), str(model)], cwd=REPOSITORY, check=True)
    make_rows(folder / "rows.jsonl", STEPS * 16 * 5)
    first, second = (with_settings(Run(folder, name), **EXPLICIT) for name in ("explicit", "again"))
    chosen, small, last = Run(folder, "chosen"), Run(folder, "moved"), Run(folder, "filled")
    with ThreadPoolExecutor(4) as pool:
        codes = [pool.submit(run.to_end) for run in (first, second, chosen)]
        gone = pool.submit(moved, small)
        print(
            json.dumps({"exit_codes": [code.result() for code in codes], "chosen": described(chosen)["steps"]}),
            flush=True,
        )
        print(json.dumps({"moved": gone.result()}), flush=True)
    losses = first.losses()
    print(
        json.dumps(
            {
                name: distance(losses, run.losses())
                for name, run in (("floor", second), ("chosen", chosen), ("moved", small))
            }
        )
    )
    print(json.dumps({"filled": filled(last) | {"distance": distance(losses, last.losses())}}), flush=True)


MAKE = """
import sys
from pathlib import Path
from tests.gpu.bench import make_model
make_model("1b", Path(sys.argv[1]), Path(sys.argv[2]))
"""

if __name__ == "__main__":
    main()
