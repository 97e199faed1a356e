"""What is known from the rewards of held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from job.evaluation.metrics.record import Metric


def accuracy(margins: Sequence[float]) -> float:
    """The share of pairs the right way round. Equal rewards count half: the base has no others by a reference that is
    the base itself.
    """
    return sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins) / len(margins)


def mean(margins: Sequence[float]) -> float:
    return math.fsum(margins) / len(margins)


PREFERENCE_ACCURACY = Metric(
    "preference_accuracy", "Preference accuracy, 0 to 1", lower_is_better=False, lowest=0.0, highest=1.0,
    of_margins=accuracy,
)  # fmt: skip
REWARD_MARGIN = Metric("reward_margin", "Reward margin", lower_is_better=False, lowest=-math.inf, of_margins=mean)
