"""From trained weights to adapter, merged weights and six GGUFs: the job's stages beside Unsloth calls, on one GPU.

    python -m tests.gpu.export_bench 8b [FOLDER [plain | memory | full]]

The plain side is the FineTome tutorial's ending with today's names: `save_pretrained_merged`, then
`save_pretrained_gguf` once with the list of six types. Both start from the same base on disk and an adapter after two
steps. Prints JSON: seconds a stage on each side. With `memory`, the job alone makes one of every kind of export, and
each process's host memory is shown beside what was planned. With `full` it trains every weight, and exports those.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY, make_model, make_rows, spec_of

ON_A_CPU = {"model": {"precision": "16bit", "max_seq_length": 256}, "data": {"packing": False},
            "training": {"batch_size": 1, "gradient_accumulation_steps": 1}}  # fmt: skip

MIB = 1 << 20
TYPES = ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0"]
STEPS = 2


def run_job(folder: Path, full: bool = False, **export: Any) -> dict[str, Any]:
    spec = spec_of(folder / "model", folder / "rows.jsonl", folder / "output", STEPS)
    if not shutil.which("nvidia-smi"):
        for section, values in ON_A_CPU.items():
            spec[section] |= values
    if full:
        spec["model"]["precision"], spec["data"]["packing"] = "full", False
        del spec["lora"]
    spec |= {"name": "export", "export": {"merged": ["16bit"], "gguf": TYPES, "check_tokens": 128} | export}
    spec["export"]["limits"] = limits(spec["export"]["gguf"])
    (folder / "spec.json").write_text(json.dumps(spec))
    started = time.monotonic()
    with (folder / "job.log").open("w") as log:
        command = [
            sys.executable,
            "-m",
            "job",
            "run",
            str(folder / "spec.json"),
            "--log",
            "json",
            "--workdir",
            str(folder / "work"),
        ]
        code = subprocess.run(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT).returncode
    events = [json.loads(line) for line in (folder / "job.log").read_text().splitlines() if line.startswith('{"time"')]
    shown = [
        e
        for e in events
        if e["event"] in ("merge", "compare", "convert", "export", "reload", "refused", "failed", "plan")
    ]
    stats = json.loads((folder / "output" / "stats.json").read_text())
    return {"side": "job", "exit_code": code, "wall_seconds": round(time.monotonic() - started, 1),
            "stages": {p["name"]: p["wall_seconds"] for p in stats["phases"]}, "events": shown,
            "memory": [memory_of(child) for phase in stats["phases"] for child in phase["children"]]}  # fmt: skip


def memory_of(child: dict[str, Any]) -> dict[str, Any]:
    """MiB of host memory that nothing can take back."""
    return {
        "what": child["what"],
        "planned": (child["planned_bytes"] or 0) // MIB,
        "seen": child["peak_anonymous_bytes"] // MIB,
    }


def limits(types: list[str]) -> dict[str, Any]:
    """Random weights answer at random: all quantisations are far from each other, which says nothing."""
    gguf = [{"type": name, "kl": 1000, "perplexity_rise": 1000000} for name in types]
    return {"merged_logits": 1, "merged_kl": 1, "merged_4bit_kl": 1000, "gguf": gguf}


def run_plain(folder: Path) -> dict[str, Any]:
    """In this process: load, two steps, then the tutorial's way out."""
    from unsloth import FastLanguageModel  # isort: skip  before trl and transformers

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder / "model"), max_seq_length=2048, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=16, use_rslora=True,
        target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "o_proj", "gate_proj"],
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.01)
    marks = {"start": time.monotonic()}
    model.save_pretrained(folder / "plain-adapter")
    marks["adapter"] = time.monotonic()
    model.save_pretrained_merged(str(folder / "plain-merged"), tokenizer, save_method="merged_16bit")
    marks["merged"] = time.monotonic()
    made = model.save_pretrained_gguf(str(folder / "plain-gguf"), tokenizer, quantization_method=TYPES)
    marks["gguf"] = time.monotonic()
    seconds = {b: round(marks[b] - marks[a], 1) for a, b in itertools.pairwise(marks)}
    return {
        "side": "plain",
        "stages": seconds,
        "seconds": round(marks["gguf"] - marks["start"], 1),
        "made": str(made)[:2000],
    }


def main() -> None:
    shape, folder = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "/tmp/export-bench")
    side = sys.argv[3] if len(sys.argv) > 3 else "both"
    folder.mkdir(parents=True, exist_ok=True)
    if side == "plain":
        os.chdir(folder)
        print(json.dumps(run_plain(folder)), flush=True)
        return
    if not (folder / "model" / "config.json").exists():
        make_model(shape, folder / "model", REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct")
    make_rows(folder / "rows.jsonl", 400)
    if side in ("memory", "full"):
        every: dict[str, Any] = {
            "merged": ["16bit", "4bit"],
            "gguf": ["q8_0", "q4_k_m"],
            "imatrix": True,
            "lora_gguf": "f16",
        }
        found = run_job(folder, **every) if side == "memory" else run_job(folder, full=True, gguf=["q8_0", "q4_k_m"])
        print(*found.pop("memory"), *found["events"][-6:], found["stages"], found["exit_code"], sep="\n", flush=True)
        return
    print(json.dumps(run_job(folder)), flush=True)


if __name__ == "__main__":
    main()
