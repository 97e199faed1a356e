"""What merging onto the base that was trained, and onto the original one, costs a larger model than SmolLM2.

    python -m tests.gpu.merges SHAPE STEPS FOLDER [BASE_STEPS]        SHAPE is one of `bench`; needs an NVIDIA GPU

A model of random weights in that shape, whose every weight is trained for BASE_STEPS steps first (0: not at all), so
that there is something that 4 bits can take from it. Then the demo's rows in 4 bits, with `export.merge_onto: auto`,
and once more onto the base that was not chosen. Prints JSON lines: the choice with the adapter's loss on either base,
then each run's held-out loss and divergence (KL) from its own trained model, in nats a learned token: trained, adapter,
merged and Q8_0. A model that lies in FOLDER/model already is taken.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY, make_model, make_rows, spec_of

DEMO = REPOSITORY / "tests" / "demo"
FIGURES = ("held_out_loss", "kl", "same_top_token", "exact_match")
ROWS, HELD_OUT = 480, 60
BASE_BATCH = 16
OTHER = {"trained": "original", "original": "trained"}


def adapter_spec(model: Path, output: Path, steps: int, onto: str) -> dict[str, Any]:
    def demo(name: str, limit: int) -> dict[str, Any]:
        return {"source": str(DEMO / name), "format": "messages", "limit": limit}

    return {
        "version": 1, "name": "merges",
        "model": {"source": str(model), "precision": "4bit", "max_seq_length": 128},
        "data": {"train": [demo("train.jsonl", ROWS)], "held_out": {"sources": [demo("held_out.jsonl", HELD_OUT)]},
                 "chat_template": "chatml"},
        "lora": {"r": 16, "alpha": 32},
        "training": {"max_steps": steps, "batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-3},
        "evaluation": {"exact_match_rows": HELD_OUT, "max_new_tokens": 24},
        "export": {"merged": ["16bit"], "gguf": ["q8_0"], "merge_onto": onto},
        "output": {"uri": str(output)},
    }  # fmt: skip


def base_spec(model: Path, rows: Path, output: Path, steps: int) -> dict[str, Any]:
    document = spec_of(model, rows, output, steps)
    del document["lora"]
    document["model"] |= {"precision": "full", "max_seq_length": 512}
    document["data"]["packing"] = False
    document["training"] |= {"learning_rate": 1e-4, "optimizer": "adamw_torch_fused"}
    return document


def run(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Its statistics."""
    output = Path(document["output"]["uri"])
    spec, log = folder / f"{output.name}.json", folder / f"{output.name}.log"
    spec.write_text(json.dumps(document))
    with log.open("w") as file:
        command = [sys.executable, "-m", "job", "run", str(spec), "--log", "json"]
        code = subprocess.run(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise SystemExit(f"exit {code}: {log}\n" + log.read_text()[-3000:])
    stats: dict[str, Any] = json.loads((output / "stats.json").read_text())
    return stats


def base_of(shape: str, folder: Path, steps: int) -> Path:
    model = folder / "model"
    if not model.exists():
        make_model(shape, model, REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct")
    if not steps:
        return model
    make_rows(folder / "base-rows.jsonl", steps * BASE_BATCH * 5)
    found = run(base_spec(model, folder / "base-rows.jsonl", folder / "base", steps), folder)
    print(json.dumps({"base": shape, "steps": steps, "final_loss": found["training"]["final_loss"]}), flush=True)
    return folder / "base" / "merged"


def main() -> None:
    shape, steps, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    base = base_of(shape, folder, int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    onto = "auto"
    for _ in range(2):
        stats = run(adapter_spec(base, folder / onto, steps, onto), folder)
        delivered = stats["delivered"]
        print(
            json.dumps(
                {"asked": onto, "merged_onto": delivered["merged_onto"], "loss": stats["training"]["final_loss"]}
            ),
            flush=True,
        )
        for name, figures in delivered["artefacts"].items():
            print(json.dumps({"artefact": name} | {key: figures[key] for key in FIGURES if key in figures}), flush=True)
        onto = OTHER[delivered["merged_onto"]["onto"]]


if __name__ == "__main__":
    main()
