"""What the model knows: held-out loss, greedy answers, exact match, the gate, and the probe others can check against."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.errors import Fault, GateError
from job.host.micro_batch import in_halves
from job.spec import GatesSpec

if TYPE_CHECKING:
    from job.data.build import Prepared, Question

IGNORED = -100
GENERATION_BATCH_TOKENS = 16_384  # prompts and answers of one batch: bounds the key-value cache (2 GiB for an 8B model)
PROBE_TOKENS = 64


@dataclass(frozen=True)
class Assessment:
    """One model's results; None where the spec or the data give nothing to measure."""

    held_out_loss: float | None  # nats a trained token
    exact_match: float | None  # 0..1
    exact_match_answers: list[str]
    answers: list[str]

    def figures(self) -> dict[str, float]:
        """The numbers that were measured."""
        found = {"held_out_loss": self.held_out_loss, "exact_match": self.exact_match}
        if self.held_out_loss is not None:
            found["perplexity"] = math.exp(min(self.held_out_loss, 700.0))
        return {name: round(value, 6) for name, value in found.items() if value is not None}


def assess(model: Any, prepared: Prepared, max_new_tokens: int, batch_rows: int) -> Assessment:
    """Measures the model as it is; it must be in inference mode."""
    stops = prepared.report.stop_token_ids
    pad = prepared.tokenizer.pad_token_id

    def answered(questions: list[Question]) -> list[str]:
        return answer(model, questions, prepared.tokenizer, stops, max_new_tokens)

    held_out_loss = None if prepared.held_out is None else loss_of(model, prepared.held_out, batch_rows, pad)
    answers = answered([*prepared.exact_match, *prepared.questions])  # all at once: a batch costs as much as a row, almost
    matched, rest = answers[: len(prepared.exact_match)], answers[len(prepared.exact_match) :]
    score = exact_match(matched, prepared.exact_match) if prepared.exact_match else None
    return Assessment(held_out_loss, score, matched, rest)


def loss_of(model: Any, rows: Any, batch_rows: int, pad_token_id: int) -> float:
    """Mean cross-entropy in nats over the trained tokens of `rows` (columns input_ids, labels); batch-independent.

    Raises `GateError` if it is not finite.
    """
    import torch

    def measured(batch: list[dict[str, list[int]]]) -> list[tuple[float, int]]:
        inputs = _padded(batch, pad_token_id, model.device)
        count = int((inputs["labels"][:, 1:] != IGNORED).sum())
        return [(float(model(**inputs).loss) * count, count)]

    with torch.no_grad():
        sums = [pair for batch in _batches(rows, batch_rows) for pair in in_halves(batch, measured)]
    total, tokens = sum(loss for loss, _ in sums), sum(count for _, count in sums)
    if not math.isfinite(total):
        raise GateError(
            Fault("the model has diverged: its held-out loss is not a number", found=str(total), expected="a finite value",
                  hint="Weights hold values that are no numbers, or overflow in this precision")
        )  # fmt: skip
    return total / tokens


def _batches(rows: Any, size: int) -> Iterator[list[dict[str, list[int]]]]:
    for start in range(0, len(rows), size):
        yield [rows[i] for i in range(start, min(start + size, len(rows)))]


def _padded(batch: list[dict[str, list[int]]], pad_token_id: int, device: Any) -> dict[str, Any]:
    import torch

    width = max(len(row["input_ids"]) for row in batch)
    columns = {"input_ids": pad_token_id, "labels": IGNORED, "attention_mask": 0}
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in batch]
    return {
        name: torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in rows], device=device)
        for name, filler in columns.items()
    }


def answer(model: Any, questions: list[Question], tokenizer: Any, stop_token_ids: list[int], max_new_tokens: int) -> list[str]:
    """Greedy answers, without special tokens, in the order of `questions`; generated in batches padded on the left."""
    import torch
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stop_token_ids or None, pad_token_id=pad, use_cache=True
    )

    def answered(batch: list[list[int]]) -> list[str]:
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(q)) + q for q in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(q)) + [1] * len(q) for q in batch], device=model.device)
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
        return list(tokenizer.batch_decode(output[:, width:], skip_special_tokens=True))

    batches = _generation_batches([q.input_ids for q in questions], max_new_tokens)
    return [text.strip() for batch in batches for text in in_halves(batch, answered)]


def _generation_batches(prompts: list[list[int]], max_new_tokens: int) -> Iterator[list[list[int]]]:
    """Prompts in order, as many at once as `GENERATION_BATCH_TOKENS` lets in; at least one."""
    batch: list[list[int]] = []
    for prompt in prompts:
        width = max(map(len, [*batch, prompt])) + max_new_tokens
        if batch and width * (len(batch) + 1) > GENERATION_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def exact_match(answers: list[str], questions: list[Question]) -> float:
    """Share of answers that equal their reference, white space at the ends aside."""
    same = sum(a == (q.reference or "").strip() for a, q in zip(answers, questions, strict=True))
    return same / len(questions)


def check_gates(gates: GatesSpec, base: Mapping[str, float], tuned: Mapping[str, float]) -> None:
    """Compares two models' `figures`. Raises `GateError` naming every gate of the spec that does not hold."""
    loss = "held_out_loss"
    gained = base[loss] - tuned[loss] if loss in base and loss in tuned else None
    rules = [
        ("max_held_out_loss", gates.max_held_out_loss, tuned.get(loss), "at most"),
        ("min_loss_improvement", gates.min_loss_improvement, gained, "at least"),
        ("min_exact_match", gates.min_exact_match, tuned.get("exact_match"), "at least"),
    ]
    faults = []
    for name, limit, found, word in rules:
        if limit is None or found is None:
            continue
        holds = found <= limit if word == "at most" else found >= limit
        if not holds:  # also where the figure is not a number
            pointer = f"/evaluation/gates/{name}"
            faults.append(Fault("the tuned model does not pass this gate", pointer, f"{found:.6g}", f"{word} {limit:g}"))
    if faults:
        raise GateError(*faults)


def write_probe(model: Any, row: dict[str, list[int]], path: Path) -> None:
    """Stores `input_ids` (1, T) and fp32 `logits` (T, vocabulary) of the trained model for one row of T <= 64 tokens.

    Whoever loads the adapter elsewhere can compare their logits with those the training process saw.
    """
    import torch
    from safetensors.torch import save_file

    ids = torch.tensor([row["input_ids"][:PROBE_TOKENS]], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    save_file({"input_ids": ids.cpu().contiguous(), "logits": logits.float().cpu().contiguous()}, path)
