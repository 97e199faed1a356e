"""The demo spec on a GPU in every precision and with both engines, side by side; prints one JSON line each.

python -m tests.gpu.matrix [FOLDER [CASE…]]        on an NVIDIA GPU, 20 GiB of it free; model of tests/smollm2.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent.parent
AT_ONCE = 4
CASES: dict[str, dict[str, dict[str, Any] | None]] = {
    "demo": {},
    "packing": {
        "data": {"packing": True},
        "model": {"max_seq_length": 512},
        "training": {"batch_size": 1, "epochs": 3},
    },
    "8bit": {"model": {"precision": "8bit"}},
    "16bit": {"model": {"precision": "16bit"}},
    "full": {"model": {"precision": "full"}, "lora": None, "training": {"learning_rate": 1e-4, "epochs": 4}},
    "dora": {"lora": {"dora": True, "rslora": True, "init": "gaussian"}, "training": {"learning_rate": 5e-4}},
    "embeddings": {"lora": {"modules_to_save": ["embed_tokens"]}, "training": {"learning_rate": 5e-4, "epochs": 4}},
    "peft": {"model": {"backend": "peft"}},
    "peft-8bit": {"model": {"backend": "peft", "precision": "8bit"}},
    "peft-packing": {"model": {"backend": "peft"}, "data": {"packing": True}},
    "auto": {"training": {"gradient_checkpointing": "auto"}},
    "stock": {"training": {"compute": "stock"}},
    "fp8": {"training": {"compute": "fp8"}},
    "dpo": {"training": {"method": "dpo", "learning_rate": 1e-3}},
    "orpo": {"training": {"method": "orpo", "learning_rate": 1e-3}},
    "kto": {"training": {"method": "kto", "learning_rate": 1e-4}},
    "peft-dpo": {"model": {"backend": "peft"}, "training": {"method": "dpo", "learning_rate": 5e-5}},
    "best": {"training": {"eval_steps": 10, "keep": "best", "early_stopping": {"patience": 2}}},
}


def of_method(method: str, demo: Path, folder: Path) -> dict[str, str]:
    """The demo's rows as that method reads them: each answer is better than the next row's, or good and that bad."""
    rows = [json.loads(line)["messages"] for line in demo.read_text().splitlines()]
    found: list[dict[str, Any]] = []
    for (*prompt, answer), (*_, other) in zip(rows, [*rows[1:], rows[0]], strict=True):
        if method == "kto":
            found += [{"messages": [*prompt, said], "label": said is answer} for said in (answer, other)]
        elif answer != other:
            found.append({"prompt": prompt, "chosen": [answer], "rejected": [other]})
    path = folder / f"{method}-{demo.name}"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return {"source": str(path), "format": "kto" if method == "kto" else "preference"}


def spec_of(name: str, folder: Path) -> Path:
    document = deepcopy(json.loads((REPOSITORY / "schemas" / "examples" / "demo.json").read_text()))
    for section, changes in CASES[name].items():
        if changes is None:
            del document[section]
        else:
            document[section] |= changes
    if (method := document["training"].get("method", "sft")) != "sft":
        demo = REPOSITORY / "tests" / "demo"
        document["data"]["train"] = [of_method(method, demo / "train.jsonl", folder) | {"limit": 240}]
        document["data"]["held_out"] = {"sources": [of_method(method, demo / "held_out.jsonl", folder) | {"limit": 24}]}
        document["evaluation"] = {"prompts": document["evaluation"]["prompts"], "max_new_tokens": 24}
    document |= {"name": name, "output": {"uri": str(folder / name / "output")}}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return path


def run(name: str, folder: Path) -> dict[str, Any]:
    spec, start = spec_of(name, folder), time.monotonic()
    command = [sys.executable, "-m", "job", "run", str(spec), "--log", "json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    (folder / f"{name}.log").write_text(done.stdout + done.stderr)
    result: dict[str, Any] = {"case": name, "exit": done.returncode, "seconds": round(time.monotonic() - start, 1)}
    stats = folder / name / "output" / "stats.json"
    if stats.is_file():
        found = json.loads(stats.read_text())
        training = found["training"]
        result |= {"evaluation": found["evaluation"], "failure": found["failure"]}
        result |= {
            key: training.get(key)
            for key in (
                "steps",
                "first_loss",
                "final_loss",
                "median_step_seconds",
                "trainable_dtype",
                "batch_size",
                "kept_layers",
                "compute",
            )
        }
        result["peak_reserved_gib"] = round(
            max((p["peak_gpu_reserved_bytes"] for p in found["phases"]), default=0) / 2**30, 3
        )
    return result


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp/matrix")
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in as_completed([pool.submit(run, name, folder) for name in sys.argv[2:] or CASES]):
            print(json.dumps(done.result()), flush=True)


if __name__ == "__main__":
    main()
