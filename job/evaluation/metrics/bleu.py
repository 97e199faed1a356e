"""BLEU of all answers together, by sacrebleu with its defaults."""

from __future__ import annotations

from typing import Any

from job.evaluation.metrics.corpus import corpus_metric


def _scorer() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(force=True)  # no warning about answers that end in " ."


BLEU = corpus_metric(
    "bleu",
    "BLEU, 0 to 100",
    "BLEU of all answers together, by sacrebleu with its defaults: 13a tokens, case counts",
    _scorer,
)
