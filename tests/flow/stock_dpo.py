"""TRL's own DPO trainer on rows as TRL reads them; prints its tokens and, of some steps, what it logs.

The one thing that is put in its place is the kernel for the log-probabilities, which runs on GPUs alone: here in three lines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LOGGED = {"loss": "loss", "grad_norm": "grad_norm", "rewards/margins": "reward_margin", "rewards/accuracies": "preference_accuracy"}


def log_probabilities(hidden: Any, weight: Any, bias: Any, targets: Any, *_: Any) -> tuple[Any, ...]:
    import torch

    found = torch.log_softmax(hidden @ weight.T, dim=-1)[torch.arange(len(targets)), targets]
    return found, *[torch.zeros_like(found)] * 3, torch.zeros_like(found, dtype=torch.bool)


def main(request_path: str) -> int:
    """The request: `model`, `template`, `rows`, `steps` (0: tokens alone), `config` of the trainer, `lora`."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    asked = json.loads(Path(request_path).read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    tokenizer.chat_template = asked["template"]
    rows, folder = Dataset.from_list(asked["rows"]), str(Path(request_path).parent / "trl")
    arguments = DPOConfig(
        output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, bf16=False,
        max_length=None, gradient_checkpointing=False, train_sampling_strategy="sequential", **asked.get("config", {}),
    )  # fmt: skip
    tokens = DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=tokenizer), rows, tokenizer, arguments, "train")
    found: dict[str, Any] = {"rows": [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in tokens]}
    if asked.get("steps"):
        found["logged"] = trained(asked, tokenizer, rows, arguments)
    print(json.dumps(found))
    return 0


def trained(asked: dict[str, Any], tokenizer: Any, rows: Any, arguments: Any) -> list[dict[str, float]]:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import DPOTrainer
    from trl.trainer import utils

    utils._ChunkedLogProbFunction = SimpleNamespace(apply=log_probabilities)
    arguments.max_steps = asked["steps"]
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **asked["lora"])
    trainer = DPOTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=adapter)
    trainer.train()
    steps = [line for line in trainer.state.log_history if "loss" in line]
    return [{ours: line[theirs] for theirs, ours in LOGGED.items()} for line in steps]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
