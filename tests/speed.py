"""Rows as tokens with masks, beside the tutorials' way: `python -m tests.speed [ROWS]`.

Theirs is `datasets.map` with the chat template, then with the tokenizer, both with two processes and without any mask;
ours is what `tunejob plan` says that reading, rendering, masking and tokenising took. Same rows, same tokenizer, one
after the other, twice, in processes of their own; imports do not count. Prints a JSON line for each, then rows a
second, the ratio of the means and how many processors there are. On a machine that does other things, too, only the
ratio says something, and little.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.forking import ROOT, environment
from tests.gpu.bench import make_rows
from tests.smollm2 import model_dir

ROWS = 20_000
PROCESSES = 2
MAX_TOKENS = 2048


def ours(folder: Path) -> dict[str, Any]:
    spec = {
        "version": 1,
        "name": "speed",
        "model": {"source": str(model_dir()), "max_seq_length": MAX_TOKENS},
        "data": {"train": [{"source": str(folder / "rows.jsonl"), "format": "sharegpt"}], "held_out": False},
        "output": {"uri": str(folder / "out")},
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "job", "plan", str(folder / "spec.json"), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment(folder), capture_output=True, text=True, check=False)
    rows = json.loads(done.stdout)["rows"]
    return {
        "side": "ours",
        "rows": rows["read_rows"],
        "tokens": rows["tokens"]["expected"],
        "seconds": round(rows["seconds"], 2),
    }


def theirs(folder: Path) -> dict[str, Any]:
    """In this process."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    names = {"human": "user", "gpt": "assistant"}

    def rendered(rows: dict[str, list[Any]]) -> dict[str, list[str]]:
        chats = [
            [{"role": names[turn["from"]], "content": turn["value"]} for turn in chat] for chat in rows["conversations"]
        ]
        return {"text": [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]}

    def tokenised(rows: dict[str, list[str]]) -> dict[str, Any]:
        return {
            "input_ids": tokenizer(rows["text"], add_special_tokens=False, truncation=True, max_length=MAX_TOKENS)[
                "input_ids"
            ]
        }

    start = time.monotonic()
    dataset = datasets.load_dataset(
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=tempfile.mkdtemp(dir=folder)
    )
    dataset = dataset.map(rendered, batched=True, num_proc=PROCESSES)
    dataset = dataset.map(tokenised, batched=True, num_proc=PROCESSES, remove_columns=dataset.column_names)
    seconds = time.monotonic() - start
    tokens = sum(map(len, dataset.with_format("numpy")["input_ids"]))
    return {"side": "theirs", "rows": len(dataset), "tokens": tokens, "seconds": round(seconds, 2)}


def main() -> None:
    if sys.argv[1:2] == ["theirs"]:
        print(json.dumps(theirs(Path(sys.argv[2]))))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as scratch:
        folder, found = Path(scratch), dict[str, list[float]](ours=[], theirs=[])
        make_rows(folder / "rows.jsonl", rows)
        for side in ("theirs", "ours", "ours", "theirs"):
            if side == "ours":
                line = ours(folder)
            else:
                command = [sys.executable, "-m", "tests.speed", "theirs", scratch]
                line = json.loads(
                    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[
                        -1
                    ]
                )
            found[side].append(line["seconds"])
            print(json.dumps(line), flush=True)
    means = {side: statistics.mean(seconds) for side, seconds in found.items()}
    print(json.dumps({"rows_a_second": {side: round(rows / mean) for side, mean in means.items()},
                      "times_as_fast": round(means["theirs"] / means["ours"], 2),
                      "processors": len(os.sched_getaffinity(0)),
                      "load": round(os.getloadavg()[0], 1)}))  # fmt: skip


if __name__ == "__main__":
    main()
