"""BLEU of all answers together, by sacrebleu with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from job.evaluation.metrics.record import Counts, Metric, Options


@cache
def scorer() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(force=True)  # no warning about answers that end in " ."


def bleu(answer: str, reference: str, _: Options) -> Counts:
    """Lengths, and n-grams that match and that there are: what sacrebleu adds up over sentences."""
    (counts,) = scorer()._extract_corpus_statistics([answer], [[reference]])
    return tuple(map(float, counts))


def figure(sums: Sequence[float]) -> float:
    return float(scorer()._compute_score_from_stats([round(value) for value in sums]).score)


BLEU = Metric(
    "bleu", "BLEU, 0 to 100", "BLEU of all answers together, by sacrebleu with its defaults: 13a tokens, case counts",
    lower_is_better=False, lowest=0.0, highest=100.0, of_answer=bleu, figure=figure,
)  # fmt: skip
