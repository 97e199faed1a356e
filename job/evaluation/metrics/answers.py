"""What is known from answers to held-out questions."""

from __future__ import annotations

from job.evaluation.metrics.record import Metric


def exact_match(answer: str, reference: str) -> float:
    """1 for the reference, white space at the ends aside."""
    return float(answer.strip() == reference.strip())


EXACT_MATCH = Metric(
    "exact_match", "Exact match, 0 to 1", lower_is_better=False, lowest=0.0, highest=1.0, of_answer=exact_match
)
