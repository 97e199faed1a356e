"""What a model knows: its figures on held-out rows, and its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from job.evaluation.generate import answer
from job.evaluation.loss import loss_of
from job.evaluation.metrics import METRICS
from job.evaluation.metrics.record import DIGITS

if TYPE_CHECKING:
    from job.data.build import Prepared, Question
    from job.host.log import Bar


@dataclass(frozen=True)
class Assessment:
    """One model's results; `figures` has those metrics that the spec and the data let be measured."""

    figures: dict[str, float]
    exact_match_answers: list[str]
    answers: list[str]


Margins = Callable[[Any, Any, Callable[[int], object]], list[float]]  # of a model, rows, and who is told rows done


def assess(
    model: Any, prepared: Prepared, max_new_tokens: int, batch_rows: int, bar: Bar, margins_of: Margins | None = None
) -> Assessment:
    """Measures the model as it is; it must be in inference mode. `bar` is shown rows and questions that are done.
    `margins_of`: where held-out rows are pairs, what a model makes of them.
    """
    stops = prepared.report.stop_token_ids
    pad = prepared.tokenizer.pad_token_id
    rows = 0 if prepared.held_out is None else len(prepared.held_out)
    asked = [*prepared.exact_match, *prepared.questions]  # all at once: a batch costs as much as a row, almost
    bar.total = rows * (2 if margins_of else 1) + len(asked)
    held_out_loss, margins = None, []
    if prepared.held_out is not None:
        held_out_loss = loss_of(model, prepared.held_out, batch_rows, pad, bar.update)
        if margins_of is not None:
            margins = margins_of(model, prepared.held_out, lambda done: bar.update(rows + done))
            rows *= 2
    answers = answer(model, asked, prepared.tokenizer, stops, max_new_tokens, lambda done: bar.update(rows + done))
    matched, rest = answers[: len(prepared.exact_match)], answers[len(prepared.exact_match) :]
    return Assessment(figures_of(held_out_loss, matched, prepared.exact_match, margins), matched, rest)


def figures_of(
    held_out_loss: float | None, answers: list[str], questions: list[Question], margins: Sequence[float] = ()
) -> dict[str, float]:
    """Each metric that can be computed from the loss, if there is one, from the answers to `questions`, if there are
    any, and from the margins of pairs, if there are any.
    """
    found = {}
    for metric in METRICS.values():
        if metric.of_loss is not None and held_out_loss is not None:
            found[metric.name] = metric.of_loss(held_out_loss)
        elif metric.of_answer is not None and questions:
            values = [
                metric.of_answer(given, asked.reference or "") for given, asked in zip(answers, questions, strict=True)
            ]
            found[metric.name] = sum(values) / len(values)
        elif metric.of_margins is not None and margins:
            found[metric.name] = metric.of_margins(margins)
    return {name: round(value, DIGITS) for name, value in found.items()}
