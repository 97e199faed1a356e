"""What the model knows: held-out loss, greedy answers, exact match, the gate, and the probe others can check against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from job.evaluation.generate import answer
from job.evaluation.loss import loss_of

if TYPE_CHECKING:
    from job.data.build import Prepared, Question


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


def exact_match(answers: list[str], questions: list[Question]) -> float:
    """Share of answers that equal their reference, white space at the ends aside."""
    same = sum(a == (q.reference or "").strip() for a, q in zip(answers, questions, strict=True))
    return same / len(questions)
