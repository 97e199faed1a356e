"""chrF of all answers together, by sacrebleu with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from job.evaluation.metrics.record import Counts, Metric, Options


@cache
def scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def chrf(answer: str, reference: str, _: Options) -> Counts:
    """N-grams of characters of the answer, of the reference and of both: what sacrebleu adds up over sentences."""
    (counts,) = scorer()._extract_corpus_statistics([answer], [[reference]])
    return tuple(map(float, counts))


def figure(sums: Sequence[float]) -> float:
    return float(scorer()._compute_score_from_stats([round(value) for value in sums]).score)


CHRF = Metric(
    "chrf", "chrF, 0 to 100", "chrF2 of all answers together, by sacrebleu: n-grams of up to six characters",
    lower_is_better=False, lowest=0.0, highest=100.0, of_answer=chrf, figure=figure,
)  # fmt: skip
