"""chrF of all answers together, by sacrebleu with its defaults."""

from __future__ import annotations

from typing import Any

from job.evaluation.metrics.corpus import corpus_metric


def _scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


CHRF = corpus_metric(
    "chrf",
    "chrF, 0 to 100",
    "chrF2 of all answers together, by sacrebleu: n-grams of up to six characters",
    _scorer,
)
