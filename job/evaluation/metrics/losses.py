"""What is known from the loss of held-out rows."""

from __future__ import annotations

import math

from job.evaluation.metrics.record import Metric

LARGEST_EXPONENT = 700.0  # beyond it a double is infinite
TRAIN_LOSS = "train_loss"  # of rows that were trained on, where none are held out; gates are not about it

HELD_OUT_LOSS = Metric(
    "held_out_loss", "Held-out loss, nats a token", lower_is_better=True, lowest=0.0, of_loss=lambda loss: loss
)
PERPLEXITY = Metric(
    "perplexity",
    "Held-out perplexity, e^loss",
    lower_is_better=True,
    lowest=1.0,
    of_loss=lambda loss: math.exp(min(loss, LARGEST_EXPONENT)),
)
