"""Rules of a spec about the method of training: its rows, its settings, and what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from job.errors import Fault
from job.evaluation.metrics import METRICS as MEASURES
from job.evaluation.metrics.regex import pattern_fault
from job.spec.data_rules import sources_of
from job.spec.wording import show
from job.training.methods import METHODS, Method
from job.training.methods.rewards import FORMAT, OPTIONS

Json = dict[str, Any]
SMOOTHED = ("robust", "exo_pair")  # losses of dpo


def method_of(document: Json) -> Method:
    return METHODS[document.get("training", {}).get("method", "sft")]


def rows_of_the_method(document: Json) -> Iterator[Fault]:
    method = method_of(document)
    for pointer, source in sources_of(document):
        kind = source["format"]
        if kind not in method.formats:
            others = " or ".join(show(other.name) for other in METHODS.values() if kind in other.formats)
            yield Fault(
                f"method {method.name} learns from other rows",
                where=f"{pointer}/format",
                found=show(kind),
                expected=f"one of {', '.join(method.formats)}",
                hint=f"Write these rows' method in training.method: {others}",
            )


def settings_of_the_method(document: Json) -> Iterator[Fault]:
    """Those of other methods are refused, and so is what the method cannot do."""
    method, training = method_of(document), document.get("training", {})
    for name in METHODS:
        if name in training and name != method.name:
            yield Fault(
                f"these are settings of method {name}",
                where=f"/training/{name}",
                found=f"method {show(method.name)}",
                expected=f"no {name}, or method {show(name)}",
            )
    if not method.packs and document["data"].get("packing"):
        yield Fault("rows of this method cannot be packed: answers are compared whole",
                    where="/data/packing", found=f"true with method {method.name}", expected="false")  # fmt: skip
    if not method.packs and document["data"].get("train_on") == "all":
        yield Fault("this method compares answers; prompts are not learned", where="/data/train_on",
                    found=f'"all" with method {method.name}', expected='"responses"')  # fmt: skip
    for key in ("batch_size", "micro_batch"):
        rows = training.get(key, "auto")
        if rows != "auto" and rows < method.least_rows:
            yield Fault(
                "this method compares the rows of a micro-batch with each other",
                where=f"/training/{key}",
                found=f"{rows} with method {method.name}",
                expected=f"at least {method.least_rows}",
            )
    if method.needs_adapter and document["model"].get("precision") == "full":
        yield Fault("this method compares with the base, of which there would have to be a second copy",
                    where="/model/precision", found=f'"full" with method {method.name}',
                    expected='"4bit", "8bit" or "16bit": the base is the model with the adapter off')  # fmt: skip


def biases(document: Json) -> Iterator[Fault]:
    """Trained ones are the base's own, which stay on when its adapter is off."""
    method, bias = method_of(document), document.get("lora", {}).get("bias", "none")
    by_reference = method.rewards is not None and method.rewards.by_reference
    if bias != "none" and (by_reference or document.get("training", {}).get("grpo", {}).get("beta")):
        yield Fault("this method compares with the base, which would have the trained biases", where="/lora/bias",
                    found=f"{show(bias)} with method {method.name}", expected='"none"')  # fmt: skip


def rewards(document: Json) -> Iterator[Fault]:
    """Of grpo: what each needs or does not read, how a step is made up, and what says nothing of it."""
    training = document.get("training", {})
    if training.get("method") != "grpo":
        return
    options, pointer = training.get("grpo", {}), "/training/grpo/rewards"
    if not options.get("rewards"):
        yield Fault(
            "nothing says what an answer is worth", where=pointer, expected='such as [{"metric": "exact_match"}]'
        )
    seen: set[str] = set()
    for number, reward in enumerate(options.get("rewards", [])):
        yield from _reward(reward, f"{pointer}/{number}", seen)
    if options.get("rewards") and not any(reward.get("weight", 1.0) for reward in options["rewards"]):
        yield Fault("answers are all worth the same", where=pointer, found="every weight 0",
                    expected="another weight than 0")  # fmt: skip
    group = options.get("group_size", 8)
    answers = training.get("batch_size", 2) * training.get("gradient_accumulation_steps", 4)
    if answers % group:
        yield Fault("a step is not made up of whole groups of answers", where="/training/grpo/group_size",
                    found=f"{group}, with {answers} answers a step", expected="a divisor of them",
                    hint="batch_size times gradient_accumulation_steps is how many answers a step has")  # fmt: skip
    for key in ("gpus", "nodes"):
        if (count := document.get("resources", {}).get(key, 1)) != 1:
            yield Fault("one process gives and compares the answers of this method", where=f"/resources/{key}",
                        found=show(count), expected="1")  # fmt: skip
    most, longest = document["model"].get("max_seq_length", 2048), options.get("max_new_tokens", 256)
    if longest >= most:
        yield Fault("answers of this length leave no room for a prompt", where="/training/grpo/max_new_tokens",
                    found=str(longest), expected=f"less than model.max_seq_length, {most}")  # fmt: skip
    if "eval_steps" in training:
        yield Fault("the loss of references is not what this method lowers", where="/training/eval_steps",
                    found=str(training["eval_steps"]), expected="no eval_steps with method grpo",
                    hint="Rewards are in the curves; evaluation.metrics are measured before and after")  # fmt: skip
    yield from _answers_by_vllm(document)


def _answers_by_vllm(document: Json) -> Iterator[Fault]:
    """Of grpo: what vLLM in the training's process cannot do, or was never seen to."""
    options, model, pointer = document["training"].get("grpo", {}), document["model"], "/training/grpo"
    if not options.get("use_vllm"):
        if "vllm_gpu_memory_utilization" in options:
            yield Fault("without vLLM nothing has a share of the memory",
                        where=f"{pointer}/vllm_gpu_memory_utilization",
                        found="no use_vllm", expected="use_vllm true, or no share")  # fmt: skip
        return
    if model.get("backend", "unsloth") != "peft":
        yield Fault("answers by vLLM were never seen with this engine, which rewrites the trainer that asks for them",
                    where=f"{pointer}/use_vllm", found=f"true with backend {show(model.get('backend', 'unsloth'))}",
                    expected='model.backend "peft", or no use_vllm')  # fmt: skip
    if model.get("precision", "4bit") != "16bit":
        yield Fault("vLLM is given the weights after each step, which packed ones are not fit for",
                    where=f"{pointer}/use_vllm", found=f"true with precision {show(model.get('precision', '4bit'))}",
                    expected='model.precision "16bit", or no use_vllm')  # fmt: skip
    if dropout := document.get("lora", {}).get("dropout", 0):
        yield Fault("vLLM has no dropout: answers would be weighed by how likely the training has them with some of it",
                    where="/lora/dropout", found=json.dumps(dropout), expected="0, or no use_vllm")  # fmt: skip


def _reward(reward: Json, pointer: str, seen: set[str]) -> Iterator[Fault]:
    name = reward["metric"]
    if name in seen:
        yield Fault("this measure is there already", where=f"{pointer}/metric", found=show(name), expected="each once")
    seen.add(name)
    wanted = OPTIONS.get(name, "")
    needed = wanted and (name not in MEASURES or MEASURES[name].needs_option)
    if needed and wanted not in reward:
        yield Fault(f"the reward {name} needs to know {wanted}", where=pointer, found=show(name), expected=wanted)
    for key in ("regex", "json_schema", "at_most", "judge", "file"):
        if key in reward and key != wanted:
            yield Fault(f"the reward {name} does not read this", where=f"{pointer}/{key}", found=show(reward[key]),
                        expected=f"no {key}")  # fmt: skip
    if wanted in reward:
        why = MEASURES[name].wrong(reward[wanted]) if name in MEASURES else ""
        if name == FORMAT:
            why = pattern_fault(reward["regex"])
        if why:
            yield Fault(f"the reward {name} cannot use this", where=f"{pointer}/{wanted}", found=show(reward[wanted]),
                        expected=why)  # fmt: skip


def dpo_loss(document: Json) -> Iterator[Fault]:
    options = document.get("training", {}).get("dpo", {})
    loss, smoothing = options.get("loss_type", "sigmoid"), options.get("label_smoothing", 0)
    if smoothing and loss not in SMOOTHED:
        yield Fault("this loss has no label smoothing", where="/training/dpo/label_smoothing",
                    found=f"{json.dumps(smoothing)} with loss_type {loss}", expected="0",
                    hint="Choose loss_type robust for pairs of which some are the wrong way round")  # fmt: skip
    if loss == "exo_pair" and not smoothing:
        yield Fault("this loss needs label smoothing", where="/training/dpo/label_smoothing",
                    found=json.dumps(smoothing), expected="more than 0, such as 0.001")  # fmt: skip
