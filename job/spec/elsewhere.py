"""Where a key is in a spec that other tools have under another name, or that is written in another section."""

from __future__ import annotations

from typing import Any

# The names of TRL and transformers, PEFT, Axolotl, LLaMA-Factory and Unsloth's notebooks.
NAMES = {
    "adapter_rank": "/lora/r",
    "base_model": "/model/source",
    "cutoff_len": "/model/max_seq_length",
    "dataset": "/data/train",
    "dataset_name": "/data/train",
    "dataset_path": "/data/train",
    "datasets": "/data/train",
    "eval_batch_size": "/training/eval_batch_size",
    "finetuning_type": "/model/precision",
    "gradient_accumulation": "/training/gradient_accumulation_steps",
    "hub_model_id": "/output/hub/repository",
    "load_in_4bit": "/model/precision",
    "load_in_8bit": "/model/precision",
    "lora_alpha": "/lora/alpha",
    "lora_dropout": "/lora/dropout",
    "lora_r": "/lora/r",
    "lora_rank": "/lora/r",
    "lora_target": "/lora/targets",
    "lora_target_modules": "/lora/targets",
    "lr": "/training/learning_rate",
    "lr_scheduler_type": "/training/lr_scheduler",
    "max_length": "/model/max_seq_length",
    "micro_batch_size": "/training/batch_size",
    "model_name": "/model/source",
    "model_name_or_path": "/model/source",
    "num_epochs": "/training/epochs",
    "num_train_epochs": "/training/epochs",
    "optim": "/training/optimizer",
    "output_dir": "/output/uri",
    "per_device_eval_batch_size": "/training/eval_batch_size",
    "per_device_train_batch_size": "/training/batch_size",
    "rank": "/lora/r",
    "report_to": "/tracking",
    "save_steps": "/output/checkpoints/every_steps",
    "save_total_limit": "/output/checkpoints/keep",
    "sequence_len": "/model/max_seq_length",
    "target_modules": "/lora/targets",
    "template": "/data/chat_template",
    "test_size": "/data/held_out/fraction",
    "use_dora": "/lora/dora",
    "use_rslora": "/lora/rslora",
    "val_set_size": "/data/held_out",
    "val_size": "/data/held_out",
}


def place_of(key: str, root: dict[str, Any]) -> str:
    """The pointer of what `key` means in the schema `root`, or an empty text."""
    plain = key.lower().replace("-", "_")
    if plain in NAMES:
        return NAMES[plain]
    sections = [name for name, section in root["properties"].items() if plain in _keys(section, root)]
    if len(sections) == 1:
        return f"/{sections[0]}/{plain}"
    return f"/{plain}" if plain in root["properties"] else ""


def _keys(section: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    described = root["definitions"][section["$ref"].rsplit("/", 1)[1]] if "$ref" in section else section
    found: dict[str, Any] = described.get("properties", {})
    return found
