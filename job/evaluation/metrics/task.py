"""Figures of benchmarks: what lm-eval measures of a task, under the name task:metric."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache

from job.evaluation.metrics.losses import LARGEST_EXPONENT
from job.evaluation.metrics.record import Metric, ratio

NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}:[A-Za-z0-9_@+-]{1,64}(?:,[A-Za-z0-9_-]{1,64})?")


def exponential(sums: Sequence[float]) -> float:
    """Of log-likelihoods and what they are of."""
    return math.exp(min(-ratio(sums), LARGEST_EXPONENT))


def bits(sums: Sequence[float]) -> float:
    return -ratio(sums) / math.log(2)


# Those of which less is better, and the sums of rows that make them; all others are means.
OTHERS = {
    "perplexity": exponential,
    "word_perplexity": exponential,
    "byte_perplexity": exponential,
    "bits_per_byte": bits,
}
LOWER = {"likelihood_diff", "pct_stereotype", "perspective_api_toxicity_score", "wer"}  # means of which less is better
SHARES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"}  # means of 0 to 1; others may be anything


@cache
def task_metric(name: str) -> Metric:
    """The record of a task's figure."""
    task, _, metric = name.partition(":")
    title = f"{task}: {metric.replace('_', ' ').replace(',', ' by ')}"
    meaning = f"{metric} of the task {task}, as lm-eval has it"
    plain = metric.partition(",")[0]
    if figure := OTHERS.get(plain):
        return Metric(name, title, meaning, lower_is_better=True, lowest=0.0, figure=figure, by_others=True)
    if plain in SHARES:
        return Metric(name, f"{title}, 0 to 1", meaning, lower_is_better=False, lowest=0.0, highest=1.0, by_others=True)
    return Metric(name, title, meaning, lower_is_better=plain in LOWER, lowest=-math.inf, by_others=True)
