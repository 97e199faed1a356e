"""What a model knows: its figures on held-out rows, and its answers. Several processes, each with the whole model, may
find it together: what each has found of its share is put together row by row, and all figures are of that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from job.data.build import Prepared, Question
from job.evaluation.generate import answered, spoken
from job.evaluation.loss import losses_of, require_finite, summed_loss
from job.evaluation.margins import equal_margins, margins, rewards_of
from job.evaluation.metrics.record import Counts
from job.evaluation.readings import means, sums_of_choices
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
from job.evaluation.shares import WHOLE, Share, together
from job.host.log import Bar
from job.spec import JobSpec
from job.training.methods import METHODS

SHOWN_ANSWERS = 3
Heard = Callable[["Question", str], object]  # is called with each answer
Row = dict[str, list[int]]


@dataclass(frozen=True)
class ToMeasure:
    """Beside held-out rows, general ones and questions: rows of which the loss is wanted, and general ones of these.
    `pairs`: whether it is wanted what the model makes of held-out pairs.
    """

    compared: list[Row] | None
    general: list[Row] | None
    pairs: bool = False


@dataclass(frozen=True)
class Found:
    """What was found of a model, of each row; None where it is another's share, or the time was up.

    `losses`, `general`: nats and learned tokens. `rewards`: of held-out pairs, as `rewards_of` has them. `choices`: as
    `sums_of_choices`. `prompted`, `said`: answers to the spec's prompts and to held-out questions. `compared`: nats and
    tokens of `ToMeasure`'s two kinds of rows. `tasks`: by figure, what each document of the benchmarks adds; of their
    requests, `cut` were too long for the model.
    """

    losses: list[tuple[float, float] | None]
    general: list[tuple[float, float] | None]
    rewards: list[float | None]
    choices: list[list[float] | None]
    prompted: list[str | None]
    said: list[str | None]
    compared: list[tuple[float, float]]
    tasks: dict[str, list[Counts | None]] = field(default_factory=dict)
    cut: int = 0

    @classmethod
    def of(cls, parts: Sequence[Found]) -> Found:
        """Of all shares."""
        compared = [(sum(nats for nats, _ in each), sum(tokens for _, tokens in each))
                    for each in zip(*(part.compared for part in parts), strict=True)]  # fmt: skip
        rows = ("losses", "general", "rewards", "choices", "prompted", "said")
        return cls(
            **{name: together([getattr(part, name) for part in parts]) for name in rows},
            compared=compared,
            tasks={name: rows for part in parts for name, rows in part.tasks.items()},
            cut=sum(part.cut for part in parts),
        )


@dataclass(frozen=True)
class Assessment:
    """One model's results: by metric what each held-out row adds, as far as the spec and the data let it be measured;
    answers to held-out questions, None where there is none; numbers of those for which the time was up; answers to
    the spec's prompts; the mean losses of `ToMeasure`'s rows, None where there are none.
    """

    rows: Mapping[str, Rows]
    row_answers: list[str | None]
    unanswered: list[int]
    answers: list[str]
    compared: float | None = None
    general: float | None = None

    @property
    def figures(self) -> Figures:
        return figures(self.rows)

    @classmethod
    def of(cls, found: Found, prepared: Prepared, spec: JobSpec, asked: ToMeasure) -> Assessment:
        """Of what all have found together. Raises `GateError` for a loss that is not finite."""
        wanted, questions, rows = Wanted.of(spec.evaluation), prepared.exact_match, dict[str, Rows]()
        if prepared.held_out is not None:
            rows |= loss_rows(found.losses)
            if METHODS[spec.training.method].rewards is not None:
                held_out = prepared.held_out
                rows |= margin_rows(margins(held_out, found.rewards) if asked.pairs else equal_margins(held_out))
        if prepared.general is not None:
            rows |= general_rows(found.general)
        compared = questions if wanted.choices else []
        likely = means(compared, found.choices)
        if questions:
            given = found.said if wanted.answers else [None] * len(questions)
            rows |= answer_rows(wanted, given, questions) | choice_rows(wanted, likely, compared)
        late = [number for number, text in enumerate(found.said) if text is None]
        said = found.said if wanted.answers else _likeliest(likely, compared)
        answers, losses = [text or "" for text in found.prompted], list(map(_mean, found.compared))
        return cls(rows | found.tasks, said, late, answers, *losses)


def _mean(loss: tuple[float, float]) -> float | None:
    nats, tokens = loss
    require_finite(nats)
    return nats / tokens if tokens else None


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
    model: Any, prepared: Prepared, spec: JobSpec, asked: ToMeasure, bar: Bar, heard: Heard = lambda *_: None,
    share: Share = WHOLE,
) -> Found:  # fmt: skip
    """Measures the model as it is, on a share of the rows; it must be in inference mode. `bar` is shown what is done,
    and the first answers are `heard`.
    """
    wanted, pad, batch_rows = Wanted.of(spec.evaluation), prepared.tokenizer.pad_token_id, spec.training.eval_batch_size
    held_out, general = ([] if rows is None else rows for rows in (prepared.held_out, prepared.general))
    questions = prepared.exact_match if wanted.answers else []
    compared = prepared.exact_match if wanted.choices else []
    paired = held_out if asked.pairs else []
    progress, parts = _Progress(bar), (held_out, paired, general, compared, questions, prepared.questions)
    bar.total = sum(map(len, parts)) // share.count
    losses = losses_of(model, held_out, batch_rows, pad, progress.part, share)
    progress.end(len(held_out) // share.count)
    rewards = _rewards(model, paired, spec, pad, progress, share)
    of_general = losses_of(model, general, batch_rows, pad, progress.part, share)
    progress.end(len(general) // share.count)
    choices = sums_of_choices(model, compared, batch_rows, pad, share)
    progress.end(len(compared) // share.count)
    prompted, said = _answers(model, prepared, questions, spec, heard, progress, share)
    further = [summed_loss(model, rows or [], batch_rows, pad, share) for rows in (asked.compared, asked.general)]
    return Found(losses, of_general, rewards, choices, prompted, said, [(nats, float(n)) for nats, n in further])


def _rewards(
    model: Any, rows: Any, spec: JobSpec, pad: int, progress: _Progress, share: Share
) -> list[float | None]:  # fmt: skip
    method = METHODS[spec.training.method]
    if method.rewards is None or not len(rows):
        return []
    settings = getattr(spec.training, method.name)
    found = rewards_of(model, rows, method.rewards, settings, pad, progress.part, share)
    progress.end(len(rows) // share.count)
    return found


def _answers(
    model: Any,
    prepared: Prepared,
    asked: list[Question],
    spec: JobSpec,
    heard: Heard,
    progress: _Progress,
    share: Share,
) -> tuple[list[str | None], list[str | None]]:
    """To the spec's prompts, and to those that are `asked`: all at once, for a batch costs as much as a row, almost;
    where time is bounded, the prompts first, and of the others as many as there is time for.
    """
    minutes, most = spec.evaluation.max_minutes, spec.evaluation.max_new_tokens
    deadline = time.monotonic() + 60 * minutes if minutes else math.inf
    shown = 0

    def ask(questions: list[Question], until: float) -> list[str | None]:
        nonlocal shown
        found: list[str | None] = [None] * len(questions)
        prompts, stops = [question.input_ids for question in questions], prepared.report.stop_token_ids
        pad = prepared.tokenizer.pad_token_id
        for numbers, ids in answered(model, prompts, pad, stops, most, until, share):
            for number, text in zip(numbers, spoken(prepared.tokenizer, ids, stops), strict=True):
                found[number] = text
                if shown < SHOWN_ANSWERS:
                    heard(questions[number], text)
                    shown += 1
            progress.end(len(numbers))
        return found

    if deadline < math.inf:
        prompted = ask(prepared.questions, math.inf)
        return prompted, ask(asked, deadline)
    every = ask([*prepared.questions, *asked], math.inf)
    return every[: len(prepared.questions)], every[len(prepared.questions) :]


def _likeliest(likely: list[list[float]], questions: list[Question]) -> list[str | None]:
    """Where nothing is generated: of the choices of each question, the likeliest."""
    asked = zip(likely, questions, strict=True)
    return [question.texts[max(range(len(each)), key=each.__getitem__)] if each else None for each, question in asked]
