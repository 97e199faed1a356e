"""What is known from the rewards of held-out pairs."""

from __future__ import annotations

import math

from job.evaluation.metrics.record import Metric


def right_way(margin: float) -> float:
    """Equal rewards count half: the base has no others by a reference that is the base itself."""
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


PREFERENCE_ACCURACY = Metric(
    "preference_accuracy", "Preference accuracy, 0 to 1",
    "share of held-out pairs whose chosen answer has the higher reward",
    lower_is_better=False, lowest=0.0, highest=1.0, of_margin=right_way,
)  # fmt: skip
REWARD_MARGIN = Metric(
    "reward_margin", "Reward margin", "by how much the chosen answer's reward is higher, the mean over held-out pairs",
    lower_is_better=False, lowest=-math.inf, of_margin=lambda margin: margin,
)  # fmt: skip
