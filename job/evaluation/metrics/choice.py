"""Which of a few answers a model finds likeliest; it need not say it."""

from __future__ import annotations

from collections.abc import Sequence

from job.evaluation.metrics.record import Counts, Metric, yes


def choice(log_probabilities: Sequence[float], right: int) -> Counts:
    """Whether the right answer's tokens have the highest mean log-probability; of equal ones the first counts."""
    return yes(max(range(len(log_probabilities)), key=log_probabilities.__getitem__) == right)


def wrong(choices: Sequence[str]) -> str:
    said = [choice.strip() for choice in choices]
    if "" in said:
        return "choices that are not blank"
    return "" if len(set(said)) == len(said) else "choices that differ in more than white space at the ends"


CHOICE = Metric(
    "choice", "Choice, 0 to 1",
    "share of questions whose reference has the highest mean log-probability of their choices; nothing is generated",
    lower_is_better=False, lowest=0.0, highest=1.0, unfit="are none of these",
    of_choice=choice, option="choices", or_option="choices_column", needs_option=True, wrong=wrong,
)  # fmt: skip
