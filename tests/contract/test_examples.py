"""The shipped examples: valid, complete, and the recipes' hyper-parameters exactly as their tutorials give them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest

from job.spec import JobSpec, job_schema, parse_spec
from job.tracking import IN_IMAGE, TRACKERS
from tests.contract.test_schema import NAMED

ROOT = Path(__file__).parents[2]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "schemas" / "examples").glob("*.json"))}
ALL_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def example(name: str) -> JobSpec:
    return parse_spec(EXAMPLES[name].read_bytes())


def test_the_examples_that_are_promised() -> None:
    promised = {
        "finetome-llama31-8b",
        "alpaca-llama3-8b",
        "medqa-llama32-1b",
        "smallest-hub",
        "smallest-s3",
        "everything",
        "demo",
    }
    assert promised <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_valid_and_names_its_schema_and_itself(name: str) -> None:
    document = json.loads(EXAMPLES[name].read_bytes())
    assert next(iter(document.items())) == ("$schema", "../job.schema.json")
    assert (EXAMPLES[name].parent / document["$schema"]).is_file()
    assert example(name).name == name


# The supervised fine-tuning recipe of FineTome-100k on Llama 3.1 8B.
FINETOME: dict[str, Any] = {
    "model_name": "hf://unsloth/Meta-Llama-3.1-8B-bnb-4bit", "max_seq_length": 2048, "load_in_4bit": True,
    "dataset": "hf://datasets/mlabonne/FineTome-100k",
    "split": "train", "format": "sharegpt", "chat_template": "chatml",
    "r": 16, "lora_alpha": 16, "lora_dropout": 0, "use_rslora": True, "bias": "none", "random_state": 3407,
    "learning_rate": 3e-4, "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
    "num_train_epochs": 1, "max_steps": None, "logging_steps": 1,
    "optim": "adamw_8bit", "weight_decay": 0.01, "warmup_steps": 10,
    "seed": 0, "packing": True, "train_on": "all", "max_new_tokens": 128,
}  # fmt: skip
# Alpaca-cleaned on Llama 3 8B.
ALPACA: dict[str, Any] = {
    "model_name": "hf://unsloth/llama-3-8b-bnb-4bit", "max_seq_length": 2048, "load_in_4bit": True,
    "dataset": "hf://datasets/yahma/alpaca-cleaned", "split": "train", "format": "alpaca", "chat_template": "alpaca",
    "r": 16, "lora_alpha": 16, "lora_dropout": 0, "use_rslora": False, "bias": "none", "random_state": 3407,
    "learning_rate": 2e-5, "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
    "num_train_epochs": None, "max_steps": 60, "logging_steps": 1,
    "optim": "adamw_8bit", "weight_decay": 0.01, "warmup_steps": 5,
    "seed": 3407, "packing": False, "train_on": "all", "max_new_tokens": 64,
}  # fmt: skip
# MedQA-USMLE on Llama 3.2 1B Instruct.
MEDQA: dict[str, Any] = {
    "model_name": "hf://unsloth/Llama-3.2-1B-Instruct", "max_seq_length": 2048, "load_in_4bit": True,
    "dataset": "hf://datasets/Neelectric/MedQA-USMLE", "split": "train", "format": "template", "chat_template": "model",
    "r": 16, "lora_alpha": 16, "lora_dropout": 0, "use_rslora": False, "bias": "none", "random_state": 42,
    "learning_rate": 2e-4, "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
    "num_train_epochs": None, "max_steps": 200, "logging_steps": 10,
    "optim": "adamw_8bit", "weight_decay": 0.01, "warmup_steps": 5,
    "seed": 700, "packing": False, "train_on": "responses", "max_new_tokens": 128,
}  # fmt: skip
RECIPES = {"finetome-llama31-8b": FINETOME, "alpaca-llama3-8b": ALPACA, "medqa-llama32-1b": MEDQA}


def hyper_parameters(spec: JobSpec) -> dict[str, Any]:
    """The spec in the names that the tutorials use."""
    (source,) = spec.data.train
    training, lora = spec.training, spec.lora
    assert lora is not None
    return {
        "model_name": spec.model.source, "max_seq_length": spec.model.max_seq_length,
        "load_in_4bit": spec.model.precision == "4bit",
        "dataset": source.source, "split": source.split,
        "format": source.format, "chat_template": spec.data.chat_template,
        "r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora, "bias": lora.bias,
        "random_state": lora.seed, "learning_rate": training.learning_rate, "lr_scheduler_type": training.lr_scheduler,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "num_train_epochs": training.epochs, "max_steps": training.max_steps, "logging_steps": training.logging_steps,
        "optim": training.optimizer, "weight_decay": training.weight_decay, "warmup_steps": training.warmup_steps,
        "seed": training.seed, "packing": spec.data.packing, "train_on": spec.data.train_on,
        "max_new_tokens": spec.evaluation.max_new_tokens,
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_tutorials(name: str) -> None:
    spec = example(name)
    assert hyper_parameters(spec) == RECIPES[name]
    assert spec.lora is not None
    assert set(spec.lora.targets) == ALL_LINEAR
    assert spec.lora.dora is False
    assert spec.data.held_out is False
    assert spec.tracking == (() if name.startswith("medqa") else ("tensorboard",))
    # What the tutorials leave to the trainer's defaults.
    assert (spec.training.adam_beta1, spec.training.adam_beta2, spec.training.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (spec.training.max_grad_norm, spec.data.shuffle) == (1.0, True)


@pytest.mark.parametrize("trim", [False, True])
def test_the_medqa_template_renders_the_tutorials_prompt(trim: bool) -> None:
    template = example("medqa-llama32-1b").data.train[0].template
    assert template is not None
    row = {
        "question": "Which?",
        "answer": "Nitrofurantoin",
        "options": {"A": "Ampicillin", "B": "Ceftriaxone", "E": "Nitrofurantoin"},
    }
    environment = jinja2.Environment(trim_blocks=trim, lstrip_blocks=trim, autoescape=False)
    expected = (
        "Which?\n\nOptions:\nA. Ampicillin\nB. Ceftriaxone\nE. Nitrofurantoin\n\nPlease choose the correct answer."
    )
    assert environment.from_string(template.user).render(row) == expected
    assert environment.from_string(template.assistant).render(row) == "The correct answer is Nitrofurantoin."


def test_medqa_by_the_letter_asks_for_a_letter() -> None:
    """One of the choices is the answer of every row, and the options have these letters."""
    spec = example("medqa-choice")
    template, choices = spec.data.train[0].template, spec.evaluation.choices
    assert template is not None
    assert choices is not None
    options = dict(
        zip(choices, ("Ampicillin", "Ceftriaxone", "Ciprofloxacin", "Doxycycline", "Nitrofurantoin"), strict=True)
    )
    row = {"question": "Which?", "answer": "Nitrofurantoin", "answer_idx": "E", "options": options}
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    asked = environment.from_string(template.user).render(row)
    assert asked.startswith("Which?\n\nA. Ampicillin\nB. Ceftriaxone\n")
    assert asked.endswith("\nE. Nitrofurantoin\n\nAnswer with the letter of the right option.")
    assert environment.from_string(template.assistant).render(row) in choices
    assert [(gate.metric, gate.of) for gate in spec.evaluation.gates] == [("choice", ("trained",))]


# Keys that exclude one that everything.json has, or want what no image has.
ALTERNATIVES = {
    "/model/adapter", "/model/adapters", "/model/adapters/0/adapter", "/model/adapters/0/weight", "/model/combine",
    "/training/grpo/rewards/0/json_schema", "/training/grpo/rewards/0/file", "/model/combine/method",
    "/model/combine/density", "/model/combine/sign", "/training/max_steps", "/training/warmup_steps",
    "/data/held_out/fraction", "/data/held_out/rows", "/export/lora_gguf", "/evaluation/tasks/0/rows/choices_column",
    "/evaluation/choices_column", "/training/grpo/use_vllm", "/training/grpo/vllm_gpu_memory_utilization",
    *(f"/training/grpo/rewards/0/judge{key}"
      for key in ("", "/model", "/rubric", "/max_requests", "/max_tokens", "/max_answer_tokens")),
}  # fmt: skip


# Of other methods than everything.json's, and of their rows.
OF_METHODS = {
    "dpo-llama32-1b": ("/training/dpo", "/data/train/0/columns/chosen", "/data/train/0/columns/rejected"),
    "orpo-llama32-1b": ("/training/orpo",),
    "simpo-llama32-1b": ("/training/simpo",),
    "kto-llama32-1b": ("/training/kto", "/data/train/0/columns/label"),
    "grpo-llama32-1b": ("/training/grpo", "/data/train/0/columns/reference"),
}


def test_everything_sets_every_key_but_those_that_exclude_another() -> None:
    given = set(pointers(json.loads(EXAMPLES["everything"].read_bytes())))
    wanted = {re.sub("^.*/sources/0/", "/data/train/0/", pointer) for pointer in NAMED} - ALTERNATIVES
    for name, places in OF_METHODS.items():
        own = {pointer for pointer in wanted if any(f"{pointer}/".startswith(f"{place}/") for place in places)}
        assert own <= set(pointers(json.loads(EXAMPLES[name].read_bytes())))
        wanted -= own
    assert wanted <= given
    assert given & ALTERNATIVES == set()


def test_what_can_be_known_of_everything_without_its_places_would_run() -> None:
    """Packed weights with the model they were made from, trackers that the locks have, columns of the data set."""
    spec = example("everything")
    locked = {
        line.partition("==")[0] for line in (ROOT / "locks" / "cuda.txt").read_text().splitlines() if "==" in line
    }
    assert set(IN_IMAGE) == set(TRACKERS) & locked
    assert set(spec.tracking) <= set(IN_IMAGE)
    assert spec.model.source.partition("@")[0] == f"{spec.model.merge_base}-bnb-4bit"
    assert [source.columns for source in spec.data.train if source.source.startswith("hf://")] == [{}]


def pointers(value: Any, at: str = "") -> list[str]:
    """Pointers of every key, entries of one list taken together."""
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in (f"{at}/{key}", *pointers(item, f"{at}/{key}"))]
    return [p for item in value for p in pointers(item, f"{at}/0")] if isinstance(value, list) else []


def test_the_smallest_have_only_what_is_required() -> None:
    for name in ("smallest-hub", "smallest-s3"):
        document = json.loads(EXAMPLES[name].read_bytes())
        assert set(document) - {"$schema"} == set(job_schema()["required"])
        assert set(document["model"]) == {"source"}
        assert [set(source) for source in document["data"]["train"]] == [{"source", "format"}]


def test_the_demo_trains_on_the_projects_own_rows() -> None:
    spec = example("demo")
    assert spec.data.held_out is not None
    assert spec.data.held_out.sources is not None
    assert (ROOT / spec.data.train[0].source).is_file()
    assert (ROOT / spec.data.held_out.sources[0].source).is_file()
    assert spec.evaluation.exact_match_rows >= 12
    assert [(gate.metric, gate.at_least) for gate in spec.evaluation.gates] == [("exact_match", 0.8)]
    assert spec.output.uri == "demo-output"
    held_out = [
        json.loads(line)["messages"][0]["content"]
        for line in (ROOT / spec.data.held_out.sources[0].source).read_text().splitlines()
    ]
    assert set(spec.evaluation.prompts) <= set(held_out)
