"""TRL's own trainer of a method on rows as TRL reads them; prints DPO's tokens and, of some steps, its log.

The one thing that is put in its place is the kernel for the log-probabilities, which runs on GPUs alone: here in three
lines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "preference_accuracy",
    "kl": "kl",
}


def log_probabilities(hidden: Any, weight: Any, bias: Any, targets: Any, *_: Any) -> tuple[Any, ...]:
    import torch

    found = torch.log_softmax(hidden @ weight.T, dim=-1)[torch.arange(len(targets)), targets]
    return found, *[torch.zeros_like(found)] * 3, torch.zeros_like(found, dtype=torch.bool)


def main(request_path: str) -> int:
    """The request: `model`, `template`, `rows`, `method` (none: tokens alone), `steps`, `config` of the trainer, `lora`
    or the `adapter` to go on from."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    asked = json.loads(Path(request_path).read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    tokenizer.chat_template = asked["template"]
    rows = Dataset.from_list(asked["rows"])
    found = (
        trained(asked, tokenizer, rows, Path(request_path).parent) if asked.get("method") else tokens(tokenizer, rows)
    )
    print(json.dumps(found))
    return 0


def tokens(tokenizer: Any, rows: Any) -> list[dict[str, list[int]]]:
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(max_length=None, use_cpu=True, report_to="none", bf16=False)
    made = DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=tokenizer), rows, tokenizer, arguments, "train")
    return [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in made]


def classes(method: str) -> tuple[Any, Any]:
    import trl
    from trl.experimental import cpo, orpo

    return {
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
        "kto": (trl.KTOConfig, trl.KTOTrainer),
        "orpo": (orpo.ORPOConfig, orpo.ORPOTrainer),
        "simpo": (cpo.CPOConfig, cpo.CPOTrainer),
    }[method]


def trained(asked: dict[str, Any], tokenizer: Any, rows: Any, folder: Path) -> list[dict[str, float]]:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM
    from trl.trainer import utils

    utils._ChunkedLogProbFunction = SimpleNamespace(apply=log_probabilities)
    config, trainer_class = classes(asked["method"])
    arguments = config(
        output_dir=str(folder / "trl"), use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, logging_steps=1, bf16=False,
        max_length=1024, gradient_checkpointing=False, train_sampling_strategy="sequential", max_steps=asked["steps"],
        **asked.get("config", {}),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    adapter = (
        None if "adapter" in asked else LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **asked["lora"])
    )
    if adapter is None:
        model = PeftModel.from_pretrained(model, asked["adapter"], is_trainable=True)
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=adapter
    )
    trainer.train()
    steps = [line for line in trainer.state.log_history if "loss" in line]
    return [{ours: line[theirs] for theirs, ours in LOGGED.items() if theirs in line} for line in steps]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
