"""How long a run takes: a model of few terms, fitted to what was measured on an H200 (tests/gpu/README.md).

A step takes what its products take, or what the host needs to start them, whichever is longer; where both are near,
somewhat more, as the fourth root of the sum of their fourth powers:

    products = padded tokens x FLOPs a token / (the card's figure x efficiency)
    host     = micro-batches x layers x seconds a layer

FLOPs a token: 2 for each weight that a token meets, once forward, once for the gradients of what comes in, once more
for those of the weights where all are trained, and once more forward in layers that are computed again; and the
attention. Other cards get the H200's efficiency and host: they were not measured; nor were methods with a reference,
whose forward pass is added, nor answers that are given in
a training by reward, which are reckoned as those of an evaluation are. What is fetched: `job.plan.fetching`.

What base and tuned model are asked, losses of held-out rows, answers and benchmarks, are forward passes alone: of
texts whose likelihood is wanted, of prompts, and for each token of an answer, as many as it may have. Such a pass takes
what a step does, but not less than the card needs to read the weights once, which bounds a token of an answer where the
host does not:

    read = passes x bytes of the weights / bytes a second of the card's memory

Left out are the keys and values of the tokens before, and what else is read of held-out rows: choices, and rewards of
pairs. A judge answers in a time that is assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from job.evaluation.generate import GENERATION_BATCH_TOKENS
from job.evaluation.judge import AT_ONCE
from job.export.kinds import kind_of
from job.plan.cards import GB, Card
from job.plan.gpu_memory import weight_bytes
from job.plan.model_size import ModelSize
from job.plan.schedule import Schedule
from job.spec import JobSpec
from job.training.methods import METHODS

if TYPE_CHECKING:
    from job.evaluation.task_work import TaskRequests

# Of the card's figure, what is reached by wide models, and the width at which it is half of that.
EFFICIENCY, HALF_WIDTH = 0.69, 1500
LAYER_SECONDS = 0.008  # of the host: forward and backward of a layer's Python and kernels in a micro-batch
FORWARD = 0.5  # of these for a forward pass alone
TOKEN = 0.25  # of these for a pass that makes a token of each answer: tests/gpu/README.md has what was measured
RECOMPUTED = 0.6  # as much more for a layer that is run forward twice
BOTH = 4  # the power of those roots
PEFT_PRODUCTS = 2.45  # plain PEFT beside Unsloth, where products take the time
# With this project's kernels, and with them in fp8, where no weights are unpacked, beside the engine alone.
KERNEL_PRODUCTS, KERNEL_HOST = {"auto": 0.92, "fp8": 0.68}, {"auto": 0.85, "fp8": 0.8}
# Beside a 4-bit or 16-bit adapter with Unsloth, where the host takes the time.
PEFT_HOST, EIGHT_BIT_HOST, DORA_HOST, FULL_HOST = 1.6, 2.7, 3.6, 0.37

ENGINE_SECONDS = 33.0  # imports of torch and Unsloth
COMPILE_SECONDS = 13.5  # of Unsloth's kernels, in the first steps
REOPEN_SECONDS = 8.4  # of the adapter in a process of its own
LOAD_RATE = 1.16e9  # bytes of 16-bit weights a second
MERGE_RATE, STORE_RATE = 1.87e9, 1.23e9
COMPARE_RATE, FORM_RATE = 0.57e9, 0.66e9  # the merge beside the adapter; 4-bit weights made and opened
CONVERT_RATE, QUANTISE_RATE = 0.74e9, 1.35e9  # each GGUF is made, tested and stored
JUDGE_REQUEST_SECONDS = 3.0  # assumed: a few sentences of a model that others use, too


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float


def forward_flops(size: ModelSize, row_tokens: float) -> float:
    """Of a token in a row of `row_tokens`, half of which it looks at; rows of a pack do not see each other."""
    met = size.parameters - size.embedding_parameters + size.table_rows * size.hidden  # the output layer is met
    return 2 * met + 2 * size.layers * size.hidden * row_tokens


def flops_a_token(spec: JobSpec, size: ModelSize, row_tokens: float, recomputed: float) -> float:
    """Of all passes. `recomputed`: the part of the layers that are computed again."""
    return forward_flops(size, row_tokens) * (2 + (spec.model.precision == "full") + recomputed)


def has_kernels(spec: JobSpec) -> bool:
    """Whether this project's kernels will compute most of a step, on layers of the outlines of a Llama."""
    lora = spec.lora
    plain = lora is not None and not (lora.dora or lora.dropout) and lora.bias == "none"
    on_its_own = spec.model.backend == "unsloth" and spec.model.precision in ("4bit", "16bit")
    return plain and on_its_own and spec.training.compute != "stock"


def _reached(size: ModelSize, card: Card) -> float:
    """FLOPs a second."""
    return card.tflops * 1e12 * EFFICIENCY * size.hidden / (size.hidden + HALF_WIDTH)


def _together(products: float, host: float) -> float:
    return float((products**BOTH + host**BOTH) ** (1 / BOTH))


@dataclass(frozen=True)
class Passes:
    """Forward passes alone over batches of `texts`, `each` of a batch: `tokens` in all, in rows of `row_tokens`."""

    texts: int
    at_once: int
    tokens: float
    row_tokens: float
    each: float = 1.0
    host: float = FORWARD

    def seconds(self, spec: JobSpec, size: ModelSize, card: Card, cards: int = 1) -> float:
        """`cards` share the batches out, and wait for the one that has most of them."""
        if not self.texts:
            return 0.0
        batches = math.ceil(self.texts / self.at_once)
        busiest = math.ceil(batches / cards)
        products = self.tokens * busiest / batches * forward_flops(size, self.row_tokens) / _reached(size, card)
        passes = busiest * self.each
        host = passes * size.layers * LAYER_SECONDS * self.host
        if spec.model.backend == "peft":
            products, host = products * PEFT_PRODUCTS, host * PEFT_HOST
        if spec.model.precision == "8bit":
            host *= EIGHT_BIT_HOST
        read = passes * weight_bytes(spec, size) / (card.gb_a_second * GB)
        return _together(max(products, read), host)


def reading(asked: TaskRequests, at_once: int) -> Passes:
    return Passes(asked.readings, at_once, asked.read_tokens, asked.read_tokens / max(1, asked.readings))


def answering(asked: TaskRequests, at_once: int) -> tuple[Passes, Passes]:
    """Of the prompts, and of the answers: a pass of a batch for each token of one."""
    count = max(1, asked.answers)
    row_tokens = (asked.prompt_tokens + asked.new_tokens) / count
    return (
        Passes(asked.answers, at_once, asked.prompt_tokens, asked.prompt_tokens / count),
        Passes(asked.answers, at_once, asked.new_tokens, row_tokens, asked.new_tokens / count, TOKEN),
    )


def asked_seconds(spec: JobSpec, size: ModelSize, card: Card, asked: TaskRequests) -> float:
    """Of one model that goes through a benchmark, in batches of `eval_batch_size`."""
    at_once = spec.training.eval_batch_size
    return sum(each.seconds(spec, size, card) for each in (reading(asked, at_once), *answering(asked, at_once)))


def measured_seconds(spec: JobSpec, size: ModelSize, card: Card, asked: TaskRequests, cards: int = 1) -> float:
    """Of one model that reads held-out rows and answers questions, as many at once as `job.evaluation.generate` has."""
    row_tokens = (asked.prompt_tokens + asked.new_tokens) / max(1, asked.answers)
    at_once = max(1, int(GENERATION_BATCH_TOKENS // max(1, row_tokens)))
    read = reading(asked, spec.training.eval_batch_size).seconds(spec, size, card, cards)
    answered = sum(each.seconds(spec, size, card, cards) for each in answering(asked, at_once))
    return read + min(answered, 60 * (spec.evaluation.max_minutes or math.inf))


def judged_seconds(requests: int) -> float:
    return math.ceil(requests / AT_ONCE) * JUDGE_REQUEST_SECONDS


def epoch_seconds(spec: JobSpec, size: ModelSize, planned: Schedule, card: Card, kept_layers: int) -> float:
    """Of one pass over the rows, with `kept_layers` that compute nothing again."""
    recomputed = 1 - kept_layers / size.layers
    products = (
        planned.computed_tokens * flops_a_token(spec, size, planned.seen_tokens, recomputed) / _reached(size, card)
    )
    host = planned.micro_batches * size.layers * LAYER_SECONDS * (1 + RECOMPUTED * recomputed)
    if has_kernels(spec):
        products *= KERNEL_PRODUCTS[spec.training.compute]
        host *= KERNEL_HOST[spec.training.compute]
    if spec.model.backend == "peft":
        products, host = products * PEFT_PRODUCTS, host * PEFT_HOST
    if spec.model.precision == "8bit":
        host *= EIGHT_BIT_HOST
    if spec.model.precision == "full":
        host *= FULL_HOST
    elif spec.lora and spec.lora.dora:
        host *= DORA_HOST
    learned = 2 + (spec.model.precision == "full") + recomputed
    further = METHODS[spec.training.method].further_passes / learned
    return _together(products, host) * (1 + further)


def given_seconds(spec: JobSpec, size: ModelSize, planned: Schedule, card: Card) -> float:
    """Of a training by reward, to give its answers, each as long as it may be, all those of a step at once."""
    training = spec.training
    if not training.grpo:
        return 0.0
    at_once = training.batch_size * training.gradient_accumulation_steps
    count, row_tokens, new = planned.steps * at_once, planned.tokens / planned.sequences, training.grpo.max_new_tokens
    prompts = Passes(count, at_once, count * row_tokens, row_tokens)
    answers = Passes(count, at_once, count * new, row_tokens + new, new, TOKEN)
    return prompts.seconds(spec, size, card) + answers.seconds(spec, size, card)


def stages(
    spec: JobSpec, size: ModelSize, data_seconds: float, training_seconds: float, cards: int,
    asked_seconds: float = 0.0, merged_seconds: float = 0.0, judge_seconds: float = 0.0,
) -> list[Stage]:  # fmt: skip
    """Of a run in its order. `data_seconds`: as long as tokenising took here. `asked_seconds`: of
    what each of base and tuned model is asked, `merged_seconds` the merged weights, `judge_seconds` a judge. On several
    `cards` processes import the engine while rows are prepared, and the load waits for what is left of that.
    """
    weights = 2 * size.parameters
    compiled = COMPILE_SECONDS if spec.model.backend == "unsloth" else 0.0
    engine = [Stage("engine", ENGINE_SECONDS)] if cards == 1 else []
    awaited = 0.0 if engine else max(0.0, ENGINE_SECONDS - data_seconds)
    found = [
        *engine,
        Stage("data", data_seconds),
        Stage("load", awaited + weights / LOAD_RATE),
        *([Stage("baseline", asked_seconds)] if asked_seconds else []),
        *([] if spec.model.adapters else [Stage("train", training_seconds + compiled)]),
        Stage("evaluate", asked_seconds + judge_seconds + REOPEN_SECONDS),
    ]
    if spec.needs_merge:
        forms = sum(1 for name in spec.artefacts if kind_of(name).form)
        stored = weights / STORE_RATE if spec.export.merged else 0
        found.append(Stage("merge", weights / MERGE_RATE + stored + merged_seconds))
        found.append(Stage("compare", weights / COMPARE_RATE + forms * weights / FORM_RATE))
    if spec.export.converts:
        found.append(Stage("gguf", weights / CONVERT_RATE + len(spec.export.gguf) * weights / QUANTISE_RATE))
    return found
