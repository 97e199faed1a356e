"""Metrics over rows: what each row adds, the figures of all, and how sure these and their differences are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from job.data.build import Question
from job.evaluation.metrics import METRICS, Metric, Options, metric_of
from job.evaluation.metrics.losses import HELD_OUT_LOSS, PERPLEXITY
from job.evaluation.metrics.record import DIGITS, Counts
from job.spec import EvaluationSpec

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
RESAMPLED = 5  # a random stream of its own, beside those of job.data.select and job.export.rows

Rows = Sequence[Counts | None]  # what each row adds; None: not answered, or its reference does not fit
Figures = dict[str, float]


@dataclass(frozen=True)
class Wanted:
    """The metrics of a spec that are about held-out questions, with their options."""

    metrics: tuple[Metric, ...]
    options: Options

    @classmethod
    def of(cls, spec: EvaluationSpec) -> Self:
        found = tuple(metric_of(name) for name in spec.metrics)
        return cls(found, Options(spec.regex, spec.json_schema, spec.choices))

    @property
    def answers(self) -> list[Metric]:
        return [metric for metric in self.metrics if metric.needs_answers]

    @property
    def choices(self) -> list[Metric]:
        return [metric for metric in self.metrics if metric.of_choice is not None]


def answer_rows(wanted: Wanted, answers: Sequence[str | None], questions: Sequence[Question]) -> dict[str, Rows]:
    """By metric, what the answers add; an answer of None was not given."""
    asked = list(zip(answers, questions, strict=True))
    return {
        metric.name: [
            None if given is None else metric.counts(given, question.reference or "", wanted.options)
            for given, question in asked
        ]
        for metric in wanted.answers
    }


def choice_rows(wanted: Wanted, likely: Sequence[Sequence[float]], questions: Sequence[Question]) -> dict[str, Rows]:
    """By metric, what the log-probabilities of each question's choices add, if the reference is one of them."""
    return {
        metric.name: [
            metric.of_choice(values, question.right) if values and metric.of_choice else None
            for values, question in zip(likely, questions, strict=True)
        ]
        for metric in wanted.choices
    }


def loss_rows(losses: Rows) -> dict[str, Rows]:
    """By metric, of nats and tokens of each held-out row."""
    return {metric.name: losses for metric in (HELD_OUT_LOSS, PERPLEXITY)}


def general_rows(losses: Rows) -> dict[str, Rows]:
    """By metric, of nats and tokens of each general row."""
    return {metric.name: losses for metric in METRICS.values() if metric.of_general}


def margin_rows(margins: Sequence[Sequence[float]]) -> dict[str, Rows]:
    """By metric, what each preferred answer adds: the mean of its reward margins."""
    return {
        metric.name: [(sum(map(metric.of_margin, each)) / len(each), 1.0) for each in margins]
        for metric in METRICS.values()
        if metric.of_margin is not None
    }


def figures(rows: Mapping[str, Rows]) -> Figures:
    """Each metric that has rows."""
    found = {name: _figure(name, [counts for counts in given if counts is not None]) for name, given in rows.items()}
    return {name: value for name, value in found.items() if value is not None}


def _figure(name: str, rows: Sequence[Counts]) -> float | None:
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return round(metric_of(name).figure(sums), DIGITS) if sums else None


def paired(first: Mapping[str, Rows], second: Mapping[str, Rows]) -> list[dict[str, Rows]]:
    """Both without the rows that one of them lacks, so that their figures are of the same rows."""
    pairs = {name: [_both(*pair) for pair in zip(first[name], second[name], strict=True)] for name in first}
    return [{name: [pair[side] for pair in rows] for name, rows in pairs.items()} for side in (0, 1)]


def _both(first: Counts | None, second: Counts | None) -> tuple[Counts | None, Counts | None]:
    return (None, None) if first is None or second is None else (first, second)


def differences(base: Mapping[str, Rows], tuned: Mapping[str, Rows], seed: int) -> dict[str, dict[str, Any]]:
    """By metric, of rows as `paired` leaves them: how many there are, of how many; the tuned model's figure less the
    base's; and intervals that hold in 19 of 20 samples of rows, of both figures and of that difference. Of fewer than
    two rows there are none.
    """
    found = {}
    for name, given in base.items():
        first, second = ([c for c in rows if c is not None] for rows in (given, tuned[name]))
        before, after = _figure(name, first), _figure(name, second)
        if before is not None and after is not None:
            about: dict[str, Any] = {"rows": len(first), "of": len(given), "difference": round(after - before, DIGITS)}
            found[name] = about | (_intervals(metric_of(name), first, second, seed) if len(first) > 1 else {})
    return found


def _intervals(metric: Metric, base: Sequence[Counts], tuned: Sequence[Counts], seed: int) -> dict[str, list[float]]:
    """Bootstrap over rows, the same rows of both models each time; the percentiles of the figures found so."""
    import numpy

    random = numpy.random.RandomState([seed, RESAMPLED])
    rows, width = numpy.array([(*a, *b) for a, b in zip(base, tuned, strict=True)]), len(base[0])
    drawn = (random.randint(0, len(rows), len(rows)) for _ in range(RESAMPLES))
    sums = [numpy.bincount(numbers, minlength=len(rows)) @ rows for numbers in drawn]
    values = numpy.array([(metric.figure(both[:width]), metric.figure(both[width:])) for both in sums])
    series = {"base": values[:, 0], "trained": values[:, 1], "interval": values[:, 1] - values[:, 0]}
    bounds = {name: numpy.percentile(found, PERCENTILES) for name, found in series.items()}
    return {name: [round(float(bound), DIGITS) for bound in found] for name, found in bounds.items()}
