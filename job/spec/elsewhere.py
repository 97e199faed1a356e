"""Where a key is in a spec that other tools have under another name, or that is written in another section."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

SHOWN_PLACES = 3
NEARNESS = 0.8  # of two spellings, 1 for the same

# The names of TRL and transformers, PEFT, Axolotl, LLaMA-Factory and Unsloth's notebooks.
NAMES = {
    "adapter_name_or_path": "/model/adapter",
    "adapter_rank": "/lora/r",
    "base_model": "/model/source",
    "batch": "/training/batch_size",
    "beta1": "/training/adam_beta1",
    "beta2": "/training/adam_beta2",
    "bf16": "/model/precision",
    "bits": "/model/precision",
    "block_size": "/model/max_seq_length",
    "clip_grad_norm": "/training/max_grad_norm",
    "cpo_alpha": "/training/simpo/sft_weight",
    "cutoff_len": "/model/max_seq_length",
    "dataset": "/data/train",
    "dataset_name": "/data/train",
    "dataset_path": "/data/train",
    "dataset_text_field": "/data/train/0/columns/text",
    "datasets": "/data/train",
    "dpo_beta": "/training/dpo/beta",
    "dpo_label_smoothing": "/training/dpo/label_smoothing",
    "early_stopping_patience": "/training/early_stopping/patience",
    "eval_batch_size": "/training/eval_batch_size",
    "eval_dataset": "/data/held_out",
    "eval_file": "/data/held_out",
    "eval_metrics": "/evaluation/metrics",
    "eval_split": "/data/held_out",
    "eval_strategy": "/training/eval_steps",
    "evaluation_strategy": "/training/eval_steps",
    "finetuning_type": "/model/precision",
    "fp16": "/model/precision",
    "full_finetuning": "/model/precision",
    "gradient_accumulation": "/training/gradient_accumulation_steps",
    "gradient_clipping": "/training/max_grad_norm",
    "hub_model_id": "/output/hub/repository",
    "hub_private_repo": "/output/hub/private",
    "learning_rate_scheduler": "/training/lr_scheduler",
    "load_best_model_at_end": "/training/keep",
    "load_in_16bit": "/model/precision",
    "load_in_4bit": "/model/precision",
    "load_in_8bit": "/model/precision",
    "logging_dir": "/tracking",
    "lora_alpha": "/lora/alpha",
    "lora_dropout": "/lora/dropout",
    "lora_model_dir": "/model/adapter",
    "lora_r": "/lora/r",
    "lora_rank": "/lora/r",
    "lora_target": "/lora/targets",
    "lora_target_modules": "/lora/targets",
    "lr": "/training/learning_rate",
    "lr_scheduler_type": "/training/lr_scheduler",
    "max_completion_length": "/training/grpo/max_new_tokens",
    "max_length": "/model/max_seq_length",
    "max_seq_len": "/model/max_seq_length",
    "max_train_steps": "/training/max_steps",
    "micro_batch_size": "/training/batch_size",
    "model_id": "/model/source",
    "model_max_length": "/model/max_seq_length",
    "model_name": "/model/source",
    "model_name_or_path": "/model/source",
    "nnodes": "/resources/nodes",
    "nproc_per_node": "/resources/gpus",
    "num_epochs": "/training/epochs",
    "num_generations": "/training/grpo/group_size",
    "num_steps": "/training/max_steps",
    "num_train_epochs": "/training/epochs",
    "optim": "/training/optimizer",
    "output_dir": "/output/uri",
    "per_device_eval_batch_size": "/training/eval_batch_size",
    "per_device_train_batch_size": "/training/batch_size",
    "pref_beta": "/training/dpo/beta",
    "pref_ftx": "/training/dpo/sft_weight",
    "pref_loss": "/training/dpo/loss_type",
    "push_to_hub": "/output/hub",
    "quantization_method": "/export/gguf",
    "random_state": "/training/seed",
    "rank": "/lora/r",
    "report_to": "/tracking",
    "reward_funcs": "/training/grpo/rewards",
    "rl": "/training/method",
    "rl_beta": "/training/dpo/beta",
    "rlhf_type": "/training/method",
    "rpo_alpha": "/training/dpo/sft_weight",
    "run_name": "/name",
    "sample_packing": "/data/packing",
    "save_steps": "/output/checkpoints/every_steps",
    "save_total_limit": "/output/checkpoints/keep",
    "scheduler": "/training/lr_scheduler",
    "seq_len": "/model/max_seq_length",
    "seq_length": "/model/max_seq_length",
    "sequence_len": "/model/max_seq_length",
    "simpo_gamma": "/training/simpo/gamma",
    "stage": "/training/method",
    "steps": "/training/max_steps",
    "target_modules": "/lora/targets",
    "template": "/data/chat_template",
    "test_size": "/data/held_out/fraction",
    "text_column": "/data/train/0/columns/text",
    "train_dataset": "/data/train",
    "train_file": "/data/train",
    "train_on_inputs": "/data/train_on",
    "train_on_responses_only": "/data/train_on",
    "use_dora": "/lora/dora",
    "use_gradient_checkpointing": "/training/gradient_checkpointing",
    "use_rslora": "/lora/rslora",
    "val_dataset": "/data/held_out",
    "val_set_size": "/data/held_out",
    "val_size": "/data/held_out",
    "validation_file": "/data/held_out",
    "validation_split": "/data/held_out/fraction",
    "warmup": "/training/warmup_steps",
}


# Words that say something else in each section.
IN_SECTION = {
    "model": dict.fromkeys(("base", "id", "model", "name", "path", "repo"), "/model/source"),
    "data": {
        **dict.fromkeys(("file", "files", "name", "path", "repo"), "/data/train/0/source"),
        "type": "/data/train/0/format",
    },
    "output": dict.fromkeys(("dir", "directory", "folder", "path"), "/output/uri"),
}


def places_of(key: str, root: dict[str, Any], section: str = "") -> list[str]:
    """Pointers of what `key`, found in `section`, means in the schema `root`; none where nobody knows it, or too
    many places have it.
    """
    plain = key.lower().replace("-", "_")
    if known := IN_SECTION.get(section, {}).get(plain) or NAMES.get(plain):
        return [known]
    found = [pointer for name, pointer in keys_of(root, root) if name == plain]
    return found if len(found) <= SHOWN_PLACES else []


def near_places(key: str, root: dict[str, Any]) -> list[str]:
    """Pointers of what `key` was to mean if it is misspelt, here or by the name that another tool has."""
    known = [*(name for name, _ in keys_of(root, root)), *NAMES]
    near = difflib.get_close_matches(key.lower().replace("-", "_"), known, 1, NEARNESS)
    return places_of(near[0], root) if near else []


def keys_of(schema: dict[str, Any], root: dict[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """Every key below `schema` with its pointer, of a list's entries those of the first; rows are described once."""
    for name, sub in schema.get("properties", {}).items():
        pointer, resolved = f"{at}/{name}", _resolved(sub, root)
        yield name, pointer
        if name != "sources":
            yield from keys_of(resolved, root, pointer)
            yield from keys_of(_resolved(resolved.get("items", {}), root), root, f"{pointer}/0")


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = root["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    return found
