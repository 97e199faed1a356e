"""Metrics that sacrebleu has: what it adds up over sentences, and its score of the sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from job.evaluation.metrics.record import Counts, Metric, Options


def corpus_metric(name: str, title: str, meaning: str, load: Callable[[], Any]) -> Metric:
    """0 to 100, of all answers together, by the scorer of sacrebleu that `load` makes when it is asked first."""
    scorer = cache(load)

    def counts(answer: str, reference: str, _: Options) -> Counts:
        (found,) = scorer()._extract_corpus_statistics([answer], [[reference]])
        return tuple(map(float, found))

    def figure(sums: Sequence[float]) -> float:
        return float(scorer()._compute_score_from_stats([round(value) for value in sums]).score)

    return Metric(
        name, title, meaning, lower_is_better=False, lowest=0.0, highest=100.0, of_answer=counts, figure=figure
    )
