"""The plan that the guide shows, and lines of it in README.md: `python -m tests.planned` writes them again.

The command itself plans the guide's spec, over 10,000 rows that are made here. Of the model there is the tokenizer,
which it shares with SmolLM2-135M, and a file of the weights' size that is a hole.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from job.reference import replace_block
from tests.data_rows import hole
from tests.forking import ROOT, environment
from tests.smollm2 import model_dir

GUIDE, README, BLOCK = "schemas/guide.md", "README.md", "plan"
IN_SHORT = re.compile(r"^ +((?:tokens an epoch|cheapest that fits|GPU  +memory|RTX 4090 ).*)$", re.MULTILINE)
ROWS = 10_000
MODEL, WEIGHTS = "SmolLM2-1.7B-Instruct", 1_711_376_384
SHAPE = {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32,
         "head_dim": 64, "intermediate_size": 8192}  # fmt: skip
SENTENCES = ("Hold the red button for five seconds.", "Close the valve and press start.", "Pull the plug for a minute.",
             "If that does not help, call the caretaker and say the number of the room.")  # fmt: skip
SAMPLES = "\n\nThe first rows as the model will read them"


def spec_of_the_guide() -> str:
    (spec,) = re.findall(
        r"```json\n(\{\n.*?)```", guide().partition("### A plan, as it is printed")[2].partition("\n## ")[0], re.DOTALL
    )
    return spec


def guide() -> str:
    return (ROOT / GUIDE).read_text("utf-8")


def make_rows(path: Path) -> None:
    """Questions with answers of one to seven sentences; each 500th row is the one before it again."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer"])
        for number in range(ROWS):
            room = number - 1 if number % 500 == 499 else number
            said = " ".join(SENTENCES[(room + turn) % len(SENTENCES)] for turn in range(room % 7 + 1))
            rows.writerow([f"How do I reset the heater in room {room}?", f"Room {room}: {said}"])


def printed(folder: Path) -> str:
    """What `tunejob plan spec.json --price …` says in `folder`, up to the rows that it shows."""
    make_rows(folder / "rows.csv")
    (folder / "spec.json").write_text(spec_of_the_guide(), "utf-8")
    model = folder / MODEL
    model.mkdir()
    for path in model_dir().iterdir():
        if path.suffix != ".safetensors":
            (model / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps(config | SHAPE), "utf-8")
    hole(model / "model.safetensors", WEIGHTS)
    (command,) = re.findall(r"^tunejob (plan spec\.json --price \S+)$", guide(), re.MULTILINE)
    asked = [sys.executable, "-m", "job", *command.split()]
    done = subprocess.run(asked, cwd=folder, env=environment(folder), capture_output=True, text=True, check=True)
    return done.stdout.partition(SAMPLES)[0]


def in_short(shown: str) -> str:
    return "\n".join(IN_SHORT.findall(shown))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        shown = printed(Path(scratch))
    for page, text in ((GUIDE, shown), (README, in_short(shown))):
        path = ROOT / page
        path.write_text(replace_block(path.read_text("utf-8"), BLOCK, f"```text\n{text}\n```", page), "utf-8")


if __name__ == "__main__":
    main()
