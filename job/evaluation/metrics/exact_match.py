"""Answers that are the reference."""

from __future__ import annotations

from job.evaluation.metrics.record import Counts, Metric, Options, yes


def exact_match(answer: str, reference: str, _: Options) -> Counts:
    """Whether it is the reference, white space at the ends aside."""
    return yes(answer.strip() == reference.strip())


EXACT_MATCH = Metric(
    "exact_match", "Exact match, 0 to 1", "share of answers that are the reference, white space at the ends aside",
    lower_is_better=False, lowest=0.0, highest=1.0, of_answer=exact_match,
)  # fmt: skip
