"""TRL's own GRPO trainer on prompts as TRL reads them, rewards in plain Python; prints what it logs of each step.

As in `stock_preference`, the kernel for the log-probabilities, which runs on GPUs alone, is written out here.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LOGGED = (
    "loss",
    "grad_norm",
    "reward",
    "kl",
    "entropy",
    "rewards/exact_match/mean",
    "rewards/length/mean",
    "completions/mean_length",
)


def log_probabilities(
    hidden: Any, weight: Any, bias: Any, targets: Any, temperature: float, *_: Any, **__: Any
) -> tuple[Any, ...]:
    import torch

    every = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
    found = every[torch.arange(len(targets)), targets]
    entropy = -(every.exp() * every).sum(-1).detach()
    return found, entropy, None, torch.zeros_like(found), torch.zeros_like(found, dtype=torch.bool)


def exact_match(completions: list[Any], reference: list[str], **_: Any) -> list[float]:
    return [
        float(answer[0]["content"].strip() == wanted) for answer, wanted in zip(completions, reference, strict=True)
    ]


def length(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(answer[0]["content"].strip()) <= 24) for answer in completions]


def main(request_path: str) -> int:
    """The request: `model`, `template`, `rows`, `end` (token that ends an answer), the trainer's `config`, `lora`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import utils

    asked = json.loads(Path(request_path).read_text("utf-8"))
    utils._ChunkedLogProbFunction = SimpleNamespace(apply=log_probabilities)
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    tokenizer.chat_template, tokenizer.eos_token = asked["template"], asked["end"]
    arguments = GRPOConfig(
        output_dir=str(Path(request_path).parent / "trl"), use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True,
        logging_steps=1, bf16=False, gradient_checkpointing=False, shuffle_dataset=False, top_k=0, **asked["config"],
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32),
        args=arguments,
        reward_funcs=[exact_match, length],
        train_dataset=Dataset.from_list(asked["rows"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **asked["lora"]),
    )
    trainer.train()
    steps = [line for line in trainer.state.log_history if "loss" in line]
    print(json.dumps([{name: line[name] for name in LOGGED if name in line} for line in steps]))
    return 0
