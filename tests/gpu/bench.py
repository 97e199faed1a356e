"""The job beside the plain Unsloth script of the FineTome tutorial: same model, rows, recipe, machine and run.

    python -m tests.gpu.bench SHAPE STEPS [FOLDER]        SHAPE is 1b, 7b or 8b; needs an NVIDIA GPU

Weights are random (speed and memory do not depend on their meaning) in the shape of Llama-3.2-1B, Qwen2.5-7B or
Llama-3.1-8B; rows are ShareGPT chats with log-normal lengths. Both sides train on all tokens in file order, so that
losses can be compared step by step. Both sides run twice, the job in the middle: machines change their speed within
minutes; then the job once by the engine alone and once in fp8. Prints one JSON line a run and a comparison of the
means. A model that is in FOLDER already is taken as it is.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

SHAPES = {
    "tiny": {"vocab_size": 49_152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "400m": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    "14b": {"hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40, "num_attention_heads": 40,
            "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
    "7b": {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064, "tie_word_embeddings": False},
}  # fmt: skip
VOCABULARY = 128_256
SEQUENCE_TOKENS = 2048
BATCH, ACCUMULATION = 8, 2
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
)
REPOSITORY = Path(__file__).parent.parent.parent
SEED = 0


def make_model(shape: str, folder: Path, tokenizer_dir: Path) -> None:
    """Random bf16 weights of a shape of Llama's, or of another family's, with a small real tokenizer beside them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.for_model(**{
        "model_type": "llama", "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "bfloat16", "vocab_size": VOCABULARY,
    } | SHAPES[shape])  # fmt: skip
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(config)
    for name, weights in model.named_parameters():
        if name.endswith(".bias"):  # they begin as zeros
            torch.nn.init.normal_(weights, std=0.5)
    model.save_pretrained(folder, max_shard_size="4GB")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.bos_token = None  # or the plain script's trainer takes the template's first marker for a doubled BOS
    tokenizer.save_pretrained(folder)


def make_rows(path: Path, count: int) -> None:
    """ShareGPT chats of two to six turns; tokens a row are log-normal around 500."""
    rng = random.Random(SEED)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            turns = 2 * rng.randint(1, 3)
            words = min(int(rng.lognormvariate(6.0, 0.6)), 1500)
            share = max(words // turns, 4)
            chat = [
                {
                    "from": "human" if turn % 2 == 0 else "gpt",
                    "value": " ".join(rng.choices(WORDS, k=share)).capitalize() + ".",
                }
                for turn in range(turns)
            ]
            file.write(json.dumps({"conversations": chat}) + "\n")


def spec_of(model_dir: Path, rows: Path, output: Path, steps: int) -> dict[str, Any]:
    """The tutorial's recipe as a job; `train_on: all` and no shuffling, as the plain script does it."""
    return {
        "version": 1, "name": "bench",
        "model": {"source": str(model_dir), "precision": "4bit", "max_seq_length": SEQUENCE_TOKENS},
        "data": {"train": [{"source": str(rows), "format": "sharegpt"}], "train_on": "all", "packing": True,
                 "shuffle": False, "held_out": False},
        "lora": {"r": 16, "alpha": 16, "dropout": 0, "rslora": True,
                 "targets": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "o_proj", "gate_proj"]},
        "training": {"max_steps": steps, "batch_size": BATCH, "gradient_accumulation_steps": ACCUMULATION,
                     "learning_rate": 3e-4, "lr_scheduler": "linear",
                     "warmup_steps": min(10, steps), "optimizer": "adamw_8bit", "weight_decay": 0.01,
                     "seed": SEED, "logging_steps": 1},
        "tracking": [],
        "output": {"uri": str(output)},
    }  # fmt: skip


class CardMemory(threading.Thread):
    """What `nvidia-smi` says is in use on the whole card, once a second; nobody else may be on it."""

    def __enter__(self) -> CardMemory:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--loop=1"]
        command = command if shutil.which(command[0]) else ["true"]  # a try without a card
        self._tool = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._looks: list[tuple[float, int]] = []
        self.start()
        return self

    def run(self) -> None:
        assert self._tool.stdout
        for line in self._tool.stdout:
            self._looks.append((time.monotonic(), int(line)))

    def __exit__(self, *_: object) -> None:
        self._tool.terminate()
        self.join()

    def peak_gib(self, until: float = math.inf) -> float:
        """Above what was in use before."""
        seen = [mib for at, mib in self._looks if at < until]
        return round((max(seen) - seen[0]) / 1024, 3) if seen else 0.0


def run_job(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """`document` is the spec, whose output is a folder."""
    spec, output = folder / "spec.json", Path(document["output"]["uri"])
    shutil.rmtree(output, ignore_errors=True)
    spec.write_text(json.dumps(document))
    start = time.monotonic()
    command = [sys.executable, "-m", "job", "run", str(spec), "--log", "json"]
    logged_at: list[float] = []
    with (folder / "job.log").open("w") as log, CardMemory() as card:
        with subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as job:
            assert job.stdout
            for line in job.stdout:
                logged_at += [time.monotonic()] if '"event": "train"' in line else []
                log.write(line)
        assert job.returncode == 0, folder
    stats = json.loads((output / "stats.json").read_text())
    losses = [json.loads(line)["loss"] for line in (output / "report" / "losses.jsonl").read_text().splitlines()]
    stages = {phase["name"]: phase["wall_seconds"] for phase in stats["phases"]}
    names = list(stages)
    trained = start + sum(stages[name] for name in names[: names.index("train") + 1])
    return {
        "side": "job", "step_seconds": median_seconds(logged_at), "tokens": stats["training"]["tokens"],
        "dtype": stats["training"]["trainable_dtype"],
        "peak_reserved_gib": round(stats["memory"]["peak_gpu_reserved_bytes"] / 2**30, 3),
        "nvidia_smi_gib": card.peak_gib(trained),
        "losses": losses, "stages": stages, "wall_seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def median_seconds(logged_at: list[float]) -> float:
    """From one step's loss in the log to the next, once the GPU has done it; the first two steps compile kernels."""
    return round(statistics.median(b - a for a, b in itertools.pairwise(logged_at[1:])), 4)


def run_plain(folder: Path, steps: int) -> dict[str, Any]:
    """In this process: the tutorial's script with today's names."""
    clock = {"start": time.monotonic()}
    os.environ["UNSLOTH_DATASET_NUM_PROC"] = "0"  # packing in shards would make other sequences of the same rows
    from unsloth import FastLanguageModel, is_bfloat16_supported  # isort: skip  before trl and transformers
    import torch
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock["import"] = time.monotonic()
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder / "model"), max_seq_length=SEQUENCE_TOKENS, load_in_4bit=True, dtype=None
    )
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=16, lora_dropout=0, use_rslora=True, use_gradient_checkpointing="unsloth",
        target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "o_proj", "gate_proj"],
    )  # fmt: skip
    clock["load"] = time.monotonic()
    names = {"human": "user", "gpt": "assistant"}

    def render(rows: dict[str, list[Any]]) -> dict[str, list[str]]:
        chats = [[{"role": names[t["from"]], "content": t["value"]} for t in chat] for chat in rows["conversations"]]
        return {"text": [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]}

    dataset = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train").map(render, batched=True)
    logged_at: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
            if "loss" in logs:
                logged_at.append(time.monotonic())
                losses.append(float(logs["loss"]))

    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=dataset, callbacks=[Clock()],
        args=SFTConfig(
            dataset_text_field="text", max_length=SEQUENCE_TOKENS,
            packing=True, learning_rate=3e-4, lr_scheduler_type="linear",
            per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION,
            max_steps=steps, bf16=is_bfloat16_supported(),
            logging_steps=1, optim="adamw_8bit", weight_decay=0.01,
            warmup_steps=min(10, steps), output_dir=str(folder / "plain"),
            seed=SEED, report_to="none", train_sampling_strategy="sequential",
        ),
    )  # fmt: skip
    clock["data"] = time.monotonic()
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    clock["train"] = time.monotonic()
    model.save_pretrained(folder / "plain" / "adapter")
    clock["adapter"] = time.monotonic()
    marks = list(clock.items())
    return {
        "side": "plain", "dtype": str(next(p.dtype for p in model.parameters() if p.requires_grad)),
        "step_seconds": median_seconds(logged_at), "packing": trainer.args.packing,
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3), "losses": losses,
        "stages": {name: round(at - before, 2) for (_, before), (name, at) in itertools.pairwise(marks)},
        "wall_seconds": round(marks[-1][1] - clock["start"], 1),
    }  # fmt: skip


def compare(plain: list[dict[str, Any]], job: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of both runs of a side; losses of the first ones."""
    step_seconds = [statistics.mean(run["step_seconds"] for run in side) for side in (plain, job)]
    differences = [abs(a - b) for a, b in zip(plain[0]["losses"], job[0]["losses"], strict=True)]
    return {
        "step_time_ratio": round(step_seconds[1] / step_seconds[0], 4),
        "step_time_ratios": [round(b["step_seconds"] / a["step_seconds"], 4) for a, b in zip(plain, job, strict=True)],
        "train_stage_ratio": round(
            sum(run["stages"]["train"] for run in job) / sum(run["stages"]["train"] for run in plain), 4
        ),
        "memory_ratio": round(job[0]["peak_reserved_gib"] / (plain[0]["peak_reserved_gib"] or 1), 4),
        "max_loss_difference": round(max(differences), 5),
        "mean_loss_difference": round(statistics.mean(differences), 5),
        "tokens_per_second": [round(job[0]["tokens"] / len(differences) / seconds) for seconds in step_seconds],
    }


def measure_plain(module: str, folder: Path, shape: str, steps: int) -> dict[str, Any]:
    """`run_plain` of the module, in a process of its own."""
    shutil.rmtree(folder / "plain", ignore_errors=True)
    with (folder / "plain.log").open("w") as log, CardMemory() as card:
        command = [sys.executable, "-m", module, shape, str(steps), str(folder), "plain"]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=log, stderr=subprocess.STDOUT)
    measured: dict[str, Any] = json.loads((folder / "plain.json").read_text())
    return measured | {"nvidia_smi_gib": card.peak_gib()}


def in_turn(
    module: str, shape: str, steps: int, folder: Path, document: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Both sides twice; each is printed."""
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "job": []}
    for side in ("plain", "job", "job", "plain"):
        found = run_job(folder, document) if side == "job" else measure_plain(module, folder, shape, steps)
        runs[side].append(found)
        print(json.dumps(found), flush=True)
    return runs


def main() -> None:
    shape, steps = sys.argv[1], int(sys.argv[2])
    folder = Path(sys.argv[3] if len(sys.argv) > 3 else f"/tmp/bench-{shape}")
    if len(sys.argv) > 4:  # the plain side, in a process of its own
        (folder / "plain.json").write_text(json.dumps(run_plain(folder, steps)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        make_model(shape, folder / "model", REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct")
    make_rows(folder / "rows.jsonl", steps * BATCH * ACCUMULATION * 5)
    print("made", shape, flush=True)
    document = spec_of(folder / "model", folder / "rows.jsonl", folder / "output", steps)
    runs = in_turn("tests.gpu.bench", shape, steps, folder, document)
    print(json.dumps(compare(**runs)), flush=True)
    for compute in ("stock", "fp8"):
        found = run_job(folder, document | {"training": document["training"] | {"compute": compute}})
        print(json.dumps(found | {"side": f"job, {compute}"}), flush=True)
        print(json.dumps(compare(runs["plain"][1:], [found])), flush=True)


if __name__ == "__main__":
    main()
