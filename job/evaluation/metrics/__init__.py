"""What an evaluation measures: one record a metric, in `METRICS`. Gates, rules, log and card follow from it."""

from __future__ import annotations

from job.evaluation.metrics import answers, losses, pairs
from job.evaluation.metrics.record import Metric

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        losses.HELD_OUT_LOSS,
        losses.PERPLEXITY,
        answers.EXACT_MATCH,
        pairs.PREFERENCE_ACCURACY,
        pairs.REWARD_MARGIN,
    )
}

__all__ = ["METRICS", "Metric"]
