"""Models as others will load them, their logits on rows of token ids, and how far two sets of logits lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import GateError
from job.evaluation.generate import answer_ids
from job.host.cgroup import available_bytes
from job.plan.host_memory import BATCH_TOKENS, COMPARED_TOKENS, ROOM_BYTES
from job.plan.require import parameters
from job.training.precision import half_precision, keep_layout
from job.weights.layout import reserve

FP32_BYTES, HALF_BYTES = 4, 2


@dataclass(frozen=True)
class Comparison:
    """How far one model's logits lie from another's over the same tokens; `kl` in nats a token, the rest 0..1."""

    max_logit_difference: float
    largest_logit: float
    kl: float
    same_top_token: float


def placement(model_dir: Path, device: str) -> Any:
    """Where the weights go: the device, or as much of 16 bits as fits on it, and the rest in host memory."""
    import torch

    if device == "cpu" or parameters(model_dir) * HALF_BYTES + ROOM_BYTES <= torch.cuda.mem_get_info()[0]:
        return {"": device}
    return "auto"


def comparison_dtype(model_dir: Path, device: str) -> Any:
    """fp32 where the weights fit so, else bf16, or fp16 on GPUs without it."""
    import torch

    free = available_bytes() if device == "cpu" else torch.cuda.mem_get_info()[0]
    if parameters(model_dir) * FP32_BYTES + ROOM_BYTES <= free:
        return torch.float32
    return half_precision(device)


def open_model(folder: Path, dtype: Any, device: str) -> Any:
    """The model in `folder`, for inference. Raises `GateError` for a missing weight, which the loader would make up."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map=placement(folder, device),
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise GateError(
                f"the weights do not fit their config.json: {kind}",
                where=folder.name,
                found=ascii(sorted(report[kind])[0]),
            )
    return keep_layout(model).eval()


def open_adapted(base: Path, adapter: Path, dtype: Any, device: str) -> Any:
    """The adapter beside its base, as PEFT runs it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(open_model(base, dtype, device), adapter).eval()


def batches(rows: list[list[int]], tokens: int) -> Iterator[tuple[list[int], Any, Any]]:
    """(numbers of the rows, ids, mask) with rows padded on the right, about `tokens` with padding, short rows first."""
    import torch

    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        size = 1
        while size < len(order) and (size + 1) * len(rows[order[size]]) <= tokens:
            size += 1
        picked, order = order[:size], order[size:]
        width = len(rows[picked[-1]])
        yield (
            picked,
            torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in picked]),
            torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in picked]),
        )


def vocabulary(model: Any) -> int:
    """Width of the model's logits."""
    return int(model.config.get_text_config().vocab_size)


def write_logits(model: Any, rows: list[list[int]], target: Any) -> None:
    """Fills `target`, fp32 (tokens of all rows, vocabulary), with the logits after each token."""
    import torch

    starts = [sum(map(len, rows[:i])) for i in range(len(rows))]
    with torch.no_grad():
        for numbers, ids, mask in batches(rows, BATCH_TOKENS):
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
            for i, row in zip(numbers, logits, strict=True):
                target[starts[i] : starts[i] + len(rows[i])] = row[: len(rows[i])].float().cpu().numpy()


def logits_on_disk(model: Any, rows: list[list[int]], path: Path) -> Any:
    """The logits of all tokens of `rows` as an fp32 array that lives in the file `path`."""
    import numpy

    shape = (sum(map(len, rows)), vocabulary(model))
    path.unlink(missing_ok=True)
    reserve(path, 4 * shape[0] * shape[1])
    target = numpy.memmap(path, dtype=numpy.float32, mode="r+", shape=shape)
    write_logits(model, rows, target)
    return target


def compare(trained: Any, found: Any, tokens: list[int] | None = None) -> Comparison:
    """`found` against `trained`, both fp32 arrays (tokens, vocabulary), at these numbers of `tokens`, or at all; a NaN
    on either side makes figures NaN.
    """
    import torch

    places = list(range(len(trained))) if tokens is None else tokens
    difference, largest, divergence, same = torch.tensor(0.0), torch.tensor(0.0), 0.0, 0
    for start in range(0, len(places), COMPARED_TOKENS):
        at = places[start : start + COMPARED_TOKENS]
        a, b = (torch.tensor(logits[at]) for logits in (trained, found))
        difference = torch.maximum(difference, (a - b).abs().max())
        largest = torch.maximum(largest, a.abs().max())
        log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
        divergence += float((log_a.exp() * (log_a - log_b)).sum(dtype=torch.float64))
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
    return Comparison(float(difference), float(largest), divergence / len(places), same / len(places))


def loss_at(logits: Any, rows: list[list[int]], tokens: list[int]) -> float:
    """Mean cross-entropy in nats of the tokens after those numbered `tokens`; fp32 logits (tokens, vocabulary)."""
    import torch

    ids, total = [token for row in rows for token in row], 0.0
    for start in range(0, len(tokens), COMPARED_TOKENS):
        at = tokens[start : start + COMPARED_TOKENS]
        predicted = torch.tensor(logits[at]).log_softmax(-1)
        following = torch.tensor([ids[place + 1] for place in at]).unsqueeze(1)
        total -= float(predicted.gather(1, following).sum(dtype=torch.float64))
    return total / len(tokens)


def perplexity(logits: Any, rows: list[list[int]]) -> float:
    """exp of the mean negative log-likelihood of every token but each row's first."""
    import torch

    total, start = 0.0, 0
    for row in rows:
        predicted = torch.tensor(logits[start : start + len(row) - 1]).log_softmax(-1)
        total -= float(predicted.gather(1, torch.tensor(row[1:]).unsqueeze(1)).sum(dtype=torch.float64))
        start += len(row)
    return math.exp(min(total / max(1, sum(map(len, rows)) - len(rows)), 700.0))


def continue_greedily(
    model: Any, prompt: list[int], stop_ids: list[int], max_new_tokens: int
) -> tuple[list[int], bool]:
    """The model's greedy answer to `prompt`, the end token with it, and whether it ended so."""
    (answer,) = answer_ids(model, [prompt], (stop_ids or [0])[0], stop_ids, max_new_tokens)
    return answer, bool(answer) and answer[-1] in stop_ids
