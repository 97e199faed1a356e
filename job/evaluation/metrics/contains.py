"""Answers that hold the reference somewhere."""

from __future__ import annotations

from job.evaluation.metrics.record import Counts, Metric, Options, yes


def contains(answer: str, reference: str, _: Options) -> Counts | None:
    """Whether the reference, white space at its ends aside, is in the answer, letter for letter."""
    wanted = reference.strip()
    return yes(wanted in answer) if wanted else None


CONTAINS = Metric(
    "contains", "Contains the reference, 0 to 1", "share of answers in which the reference is found, letter for letter",
    lower_is_better=False, lowest=0.0, highest=1.0, unfit="are empty", of_answer=contains,
)  # fmt: skip
