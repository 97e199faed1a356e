"""What is known from the loss of held-out rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from job.evaluation.metrics.record import Metric, ratio

LARGEST_EXPONENT = 700.0  # beyond it a double is infinite
TRAIN_LOSS = "train_loss"  # of rows that were trained on, where none are held out; gates are not about it


def perplexity(sums: Sequence[float]) -> float:
    """Of nats and tokens."""
    return math.exp(min(ratio(sums), LARGEST_EXPONENT))


HELD_OUT_LOSS = Metric(
    "held_out_loss", "Held-out loss, nats a token", "mean loss of the learned tokens of held-out rows",
    lower_is_better=True, lowest=0.0,
)  # fmt: skip
GENERAL_LOSS = Metric(
    "general_loss", "Loss on general rows, nats a token",
    "mean loss of the learned tokens of the rows of `evaluation.forgetting`: what it rises by was forgotten",
    lower_is_better=True, lowest=0.0, of_general=True,
)  # fmt: skip
PERPLEXITY = Metric(
    "perplexity", "Held-out perplexity, e^loss", "e to the held-out loss",
    lower_is_better=True, lowest=1.0, figure=perplexity,
)  # fmt: skip
