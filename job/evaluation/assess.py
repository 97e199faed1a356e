"""What a model knows: its figures on held-out rows, and its answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from job.data.build import Prepared, Question
from job.evaluation.generate import answered, spoken
from job.evaluation.loss import losses_of
from job.evaluation.margins import Margins
from job.evaluation.readings import log_probabilities
from job.evaluation.scores import (
    Figures,
    Rows,
    Wanted,
    answer_rows,
    choice_rows,
    figures,
    general_rows,
    loss_rows,
    margin_rows,
)
from job.host.log import Bar
from job.spec import EvaluationSpec

SHOWN_ANSWERS = 3
Heard = Callable[["Question", str], object]  # is called with each answer


@dataclass(frozen=True)
class Assessment:
    """One model's results: by metric what each held-out row adds, as far as the spec and the data let it be measured;
    answers to held-out questions, None where there is none; numbers of those for which the time was up; answers to
    the spec's prompts.
    """

    rows: dict[str, Rows]
    row_answers: list[str | None]
    unanswered: list[int]
    answers: list[str]

    @property
    def figures(self) -> Figures:
        return figures(self.rows)


MarginsOf = Callable[[Any, Any, Callable[[int], object]], list[Margins]]  # the last is called with rows done


@dataclass
class _Progress:
    """Adds up what is done over the parts of an assessment."""

    bar: Bar
    done: int = 0

    def part(self, done: int) -> None:
        self.bar.update(self.done + done)

    def end(self, done: int) -> None:
        self.done += done
        self.bar.update(self.done)


def assess(
    model: Any, prepared: Prepared, spec: EvaluationSpec, batch_rows: int, bar: Bar, heard: Heard = lambda *_: None,
    margins_of: MarginsOf | None = None,
) -> Assessment:  # fmt: skip
    """Measures the model as it is; it must be in inference mode. `bar` is shown what is done, and the first answers
    are `heard`. `margins_of`: where held-out rows are pairs, what a model makes of them.
    """
    wanted, pad, questions = Wanted.of(spec), prepared.tokenizer.pad_token_id, prepared.exact_match
    held_out = prepared.held_out if prepared.held_out is not None else []
    asked = questions if wanted.answers else []
    compared = questions if wanted.choices else []
    bar.total = len(held_out) * (2 if margins_of else 1) + len(compared) + len(asked) + len(prepared.questions)
    general = prepared.general if prepared.general is not None else []
    bar.total += len(general)
    progress, rows = _Progress(bar), dict[str, Rows]()
    if prepared.held_out is not None:
        rows |= loss_rows(losses_of(model, held_out, batch_rows, pad, progress.part))
        progress.end(len(held_out))
        if margins_of is not None:
            rows |= margin_rows(margins_of(model, held_out, progress.part))
            progress.end(len(held_out))
    if prepared.general is not None:
        rows |= general_rows(losses_of(model, general, batch_rows, pad, progress.part))
        progress.end(len(general))
    likely = log_probabilities(model, compared, batch_rows, pad)
    progress.end(len(compared))
    answers, said = _answers(model, prepared, asked, spec, heard, progress)
    if questions:
        rows |= answer_rows(wanted, said, asked) | choice_rows(wanted, likely, compared)
    late = [number for number, text in enumerate(said) if text is None]
    return Assessment(rows, said if asked else _likeliest(likely, compared), late, answers)


def _answers(
    model: Any, prepared: Prepared, asked: list[Question], spec: EvaluationSpec, heard: Heard, progress: _Progress
) -> tuple[list[str], list[str | None]]:
    """To the spec's prompts, and to those that are `asked`: all at once, for a batch costs as much as a row, almost;
    where time is bounded, the prompts first, and of the others as many as there is time for.
    """
    deadline = time.monotonic() + 60 * spec.max_minutes if spec.max_minutes else math.inf
    shown = 0

    def ask(questions: list[Question], until: float) -> list[str | None]:
        nonlocal shown
        found: list[str | None] = [None] * len(questions)
        prompts, stops = [question.input_ids for question in questions], prepared.report.stop_token_ids
        pad = prepared.tokenizer.pad_token_id
        for numbers, ids in answered(model, prompts, pad, stops, spec.max_new_tokens, until):
            for number, text in zip(numbers, spoken(prepared.tokenizer, ids, stops), strict=True):
                found[number] = text
                if shown < SHOWN_ANSWERS:
                    heard(questions[number], text)
                    shown += 1
            progress.end(len(numbers))
        return found

    if deadline < math.inf:
        prompted = ask(prepared.questions, math.inf)
        said = ask(asked, deadline)
    else:
        together = ask([*prepared.questions, *asked], math.inf)
        prompted, said = together[: len(prepared.questions)], together[len(prepared.questions) :]
    return [text or "" for text in prompted], said


def _likeliest(likely: list[list[float]], questions: list[Question]) -> list[str | None]:
    """Where nothing is generated: of the choices of each question, the likeliest."""
    asked = zip(likely, questions, strict=True)
    return [question.texts[max(range(len(each)), key=each.__getitem__)] if each else None for each, question in asked]
