"""Direct preference optimisation beside the tutorial's plain Unsloth script: same model, rows, recipe, machine, run.

    python -m tests.gpu.dpo_bench SHAPE STEPS [FOLDER]        SHAPE: 1b or 8b on an NVIDIA GPU, tiny on a CPU

Weights are random in the shape of Llama-3.2-1B or Llama-3.1-8B (4-bit, r 64, all linear layers, Unsloth's
checkpointing), pairs are of random words with log-normal lengths, 2 x 4 of them a step. The plain side is given pairs
of messages and tokenizes them itself. Its rate, 5e-6, is 5e-5 here on both sides, so that there is something to
compare. Both sides run twice, the job in the middle. Prints one JSON line a run and a comparison of the means.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY, WORDS, compare, in_turn, make_model, median_seconds

BATCH, ACCUMULATION = 2, 4
RATE, BETA, RANK, SEED = 5e-5, 0.1, 64, 3407
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEQUENCE_TOKENS = 1280  # not 1024, which Unsloth's trainer takes for a value that nobody has set
# ChatML without the line break after an answer's end token, which trl would learn and the job does not
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_pairs(path: Path, count: int, share: float = 1.0) -> None:
    """Prompts of 150 and answers of 250 words in the middle, of which none is cut; `share` of that on a CPU."""
    rng = random.Random(SEED)

    def said(role: str, median: float, most: int) -> dict[str, str]:
        words = rng.choices(WORDS, k=max(4, int(share * min(most, rng.lognormvariate(0, 0.6) * median))))
        return {"role": role, "content": " ".join(words).capitalize() + "."}

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            prompt, *answers = said("user", 150, 500), said("assistant", 250, 700), said("assistant", 250, 700)
            file.write(json.dumps({"prompt": [prompt], "chosen": answers[:1], "rejected": answers[1:]}) + "\n")


def spec_of(folder: Path, steps: int) -> dict[str, Any]:
    return {
        "version": 1, "name": "dpo-bench",
        "model": {"source": str(folder / "model"), "precision": "4bit", "max_seq_length": SEQUENCE_TOKENS},
        "data": {"train": [{"source": str(folder / "rows.jsonl"), "format": "preference"}], "shuffle": False,
                 "held_out": False, "chat_template": TEMPLATE},
        "lora": {"r": RANK, "alpha": RANK, "dropout": 0, "targets": TARGETS, "seed": SEED},
        "training": {"method": "dpo", "max_steps": steps, "batch_size": BATCH,
                     "gradient_accumulation_steps": ACCUMULATION,
                     "learning_rate": RATE, "lr_scheduler": "linear", "warmup_ratio": 0.1, "optimizer": "adamw_8bit",
                     "weight_decay": 0.0, "seed": SEED, "logging_steps": 1, "dpo": {"beta": BETA}},
        "tracking": [],
        "output": {"uri": str(folder / "output")},
    }  # fmt: skip


def run_plain(folder: Path, steps: int) -> dict[str, Any]:
    """In this process: the tutorial's script with today's names."""
    clock = {"start": time.monotonic()}
    from unsloth import FastLanguageModel, is_bfloat16_supported  # isort: skip  before trl and transformers
    import torch
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    clock["import"] = time.monotonic()
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder / "model"), max_seq_length=SEQUENCE_TOKENS, load_in_4bit=True, dtype=None
    )
    tokenizer.chat_template = TEMPLATE
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=RANK, lora_dropout=0, bias="none",
        use_gradient_checkpointing="unsloth", target_modules=TARGETS,
        random_state=SEED,
    )  # fmt: skip
    clock["load"] = time.monotonic()
    logged_at: list[float] = []
    lines: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
            if "loss" in logs:
                logged_at.append(time.monotonic())
                lines.append(logs)

    trainer = DPOTrainer(
        model=model, ref_model=None, processing_class=tokenizer, callbacks=[Clock()],
        train_dataset=load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train"),
        args=DPOConfig(
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATION, warmup_steps=0.1, max_steps=steps,
            learning_rate=RATE, bf16=is_bfloat16_supported(), logging_steps=1, optim="adamw_8bit", weight_decay=0.0,
            lr_scheduler_type="linear", seed=SEED, output_dir=str(folder / "plain"), report_to="none", beta=BETA,
            max_length=SEQUENCE_TOKENS, train_sampling_strategy="sequential",
        ),
    )  # fmt: skip
    clock["data"] = time.monotonic()
    has_card = torch.cuda.is_available()
    if has_card:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    clock["train"] = time.monotonic()
    marks = list(clock.items())
    peak = torch.cuda.max_memory_reserved() if has_card else 0
    return {
        "side": "plain",
        "dtype": str(next(p.dtype for p in model.parameters() if p.requires_grad)),
        "step_seconds": median_seconds(logged_at),
        "peak_reserved_gib": round(peak / 2**30, 3),
        "losses": [float(line["loss"]) for line in lines],
        "margins": [float(line["rewards/margins"]) for line in lines],
        "stages": {name: round(at - before, 2) for (_, before), (name, at) in itertools.pairwise(marks)},
        "wall_seconds": round(marks[-1][1] - clock["start"], 1),
    }


def main() -> None:
    shape, steps = sys.argv[1], int(sys.argv[2])
    folder = Path(sys.argv[3] if len(sys.argv) > 3 else f"/tmp/dpo-bench-{shape}")
    if len(sys.argv) > 4:  # the plain side, in a process of its own
        (folder / "plain.json").write_text(json.dumps(run_plain(folder, steps)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        make_model(shape, folder / "model", REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct")
    make_pairs(folder / "rows.jsonl", steps * BATCH * ACCUMULATION, 0.05 if shape == "tiny" else 1.0)
    print("made", shape, flush=True)
    found = compare(**in_turn("tests.gpu.dpo_bench", shape, steps, folder, spec_of(folder, steps)))
    lines = (folder / "output" / "report" / "losses.jsonl").read_text("utf-8").splitlines()
    plain = json.loads((folder / "plain.json").read_text("utf-8"))["margins"]
    margins = [json.loads(line)["reward_margin"] for line in lines]
    found["max_margin_difference"] = round(max(abs(a - b) for a, b in zip(plain, margins, strict=True)), 5)
    print(json.dumps(found | {"plain_margins": plain, "job_margins": margins}), flush=True)


if __name__ == "__main__":
    main()
