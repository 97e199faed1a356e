"""Metrics that sacrebleu has, with its defaults: what it adds up over sentences, and its score of the sums."""

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


def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(force=True)  # no warning about answers that end in " ."


def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


BLEU = corpus_metric(
    "bleu",
    "BLEU, 0 to 100",
    "BLEU of all answers together, by sacrebleu with its defaults: 13a tokens, case counts",
    _bleu,
)
CHRF = corpus_metric(
    "chrf",
    "chrF, 0 to 100",
    "chrF2 of all answers together, by sacrebleu: n-grams of up to six characters",
    _chrf,
)
