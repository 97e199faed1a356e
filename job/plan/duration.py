"""How long a run takes: a model of few terms, fitted to what was measured on an H200 (tests/gpu/README.md).

A step takes what its products take, or what the host needs to start them, whichever is longer; where both are near,
somewhat more, as the fourth root of the sum of their fourth powers:

    products = padded tokens x FLOPs a token / (the card's figure x efficiency)
    host     = micro-batches x layers x seconds a layer

FLOPs a token: 2 for each weight that a token meets, once forward, once for the gradients of what comes in, once more
for those of the weights where all are trained, and once more forward in layers that are computed again; and the
attention. Other cards get the H200's efficiency and host: they were not measured; nor were methods with a reference,
whose forward pass is added. Nor were benchmarks, which are forward passes alone: of texts whose likelihood is wanted,
of prompts, and for each token of an answer, as many as it may have. What is fetched: `job.plan.fetching`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from job.export.kinds import kind_of
from job.plan.cards import Card
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
RECOMPUTED = 0.6  # as much more for a layer that is run forward twice
BOTH = 4  # the power of those roots
PEFT_PRODUCTS = 2.45  # plain PEFT beside Unsloth, where products take the time
# With this project's kernels, and with them in fp8, beside the engine alone.
KERNEL_PRODUCTS, KERNEL_HOST = {"stock": 1.0, "auto": 0.92, "fp8": 0.68}, 0.85
# Beside a 4-bit or 16-bit adapter with Unsloth, where the host takes the time.
PEFT_HOST, EIGHT_BIT_HOST, DORA_HOST, FULL_HOST = 1.6, 2.7, 3.6, 0.37

ENGINE_SECONDS = 33.0  # imports of torch and Unsloth
COMPILE_SECONDS = 13.5  # of Unsloth's kernels, in the first steps
REOPEN_SECONDS = 8.4  # of the adapter in a process of its own
LOAD_RATE = 1.16e9  # bytes of 16-bit weights a second
MERGE_RATE, STORE_RATE = 1.87e9, 1.23e9
COMPARE_RATE, FORM_RATE = 0.57e9, 0.66e9  # the merge beside the adapter; 4-bit weights made and opened
CONVERT_RATE, QUANTISE_RATE = 0.74e9, 1.35e9  # each GGUF is made, tested and stored


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


def asked_seconds(spec: JobSpec, size: ModelSize, card: Card, asked: TaskRequests) -> float:
    """Of one model that goes through a benchmark, in batches of `eval_batch_size`."""
    batch, products, passes = spec.training.eval_batch_size, 0.0, 0.0
    each = asked.new_tokens / max(1, asked.answers)  # tokens of an answer, each a pass
    generated = asked.prompt_tokens + asked.new_tokens
    for texts, tokens, of_text in ((asked.readings, asked.read_tokens, 1.0), (asked.answers, generated, 1 + each)):
        products += tokens * forward_flops(size, tokens / max(1, texts)) / _reached(size, card)
        passes += math.ceil(texts / batch) * of_text
    host = passes * size.layers * LAYER_SECONDS * FORWARD
    if spec.model.backend == "peft":
        products, host = products * PEFT_PRODUCTS, host * PEFT_HOST
    if spec.model.precision == "8bit":
        host *= EIGHT_BIT_HOST
    return _together(products, host)


def epoch_seconds(spec: JobSpec, size: ModelSize, planned: Schedule, card: Card, kept_layers: int) -> float:
    """Of one pass over the rows, with `kept_layers` that compute nothing again."""
    recomputed = 1 - kept_layers / size.layers
    products = planned.padded_tokens * flops_a_token(spec, size, planned.seen_tokens, recomputed) / _reached(size, card)
    host = planned.micro_batches * size.layers * LAYER_SECONDS * (1 + RECOMPUTED * recomputed)
    if has_kernels(spec):
        products, host = products * KERNEL_PRODUCTS[spec.training.compute], host * KERNEL_HOST
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


def stages(
    spec: JobSpec, size: ModelSize, data_seconds: float, training_seconds: float, cards: int,
    asked_seconds: float = 0.0, merged_seconds: float = 0.0,
) -> list[Stage]:  # fmt: skip
    """Of a run in its order. `data_seconds`: as long as tokenising took here. `asked_seconds`, `merged_seconds`: of
    benchmarks that each of base and tuned model goes through, and the merged weights. On several `cards`
    processes import the engine while rows are prepared, and the load waits for what is left of that.
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
        Stage("evaluate", REOPEN_SECONDS + asked_seconds),
    ]
    if spec.needs_merge:
        forms = sum(1 for name in spec.artefacts if kind_of(name).form)
        stored = weights / STORE_RATE if spec.export.merged else 0
        found.append(Stage("merge", weights / MERGE_RATE + stored + merged_seconds))
        found.append(Stage("compare", weights / COMPARE_RATE + forms * weights / FORM_RATE))
    if spec.export.converts:
        found.append(Stage("gguf", weights / CONVERT_RATE + len(spec.export.gguf) * weights / QUANTISE_RATE))
    return found
