"""What an evaluation measures: one record a metric, in `METRICS`. Gates, rules, log and card follow from it."""

from __future__ import annotations

from job.evaluation.metrics.choice import CHOICE
from job.evaluation.metrics.contains import CONTAINS
from job.evaluation.metrics.corpus import BLEU, CHRF
from job.evaluation.metrics.exact_match import EXACT_MATCH
from job.evaluation.metrics.json_fields import JSON_FIELDS
from job.evaluation.metrics.json_valid import JSON_VALID
from job.evaluation.metrics.judge import JUDGE_WIN_RATE
from job.evaluation.metrics.losses import GENERAL_LOSS, HELD_OUT_LOSS, PERPLEXITY
from job.evaluation.metrics.pairs import PREFERENCE_ACCURACY, REWARD_MARGIN
from job.evaluation.metrics.record import Metric, Options
from job.evaluation.metrics.regex import REGEX
from job.evaluation.metrics.rouge import ROUGE_1, ROUGE_2, ROUGE_L
from job.evaluation.metrics.task import NAME, task_metric
from job.evaluation.metrics.token_f1 import TOKEN_F1
from job.evaluation.metrics.tool_calls import TOOL_CALLS, TOOL_NAMES

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        HELD_OUT_LOSS,
        PERPLEXITY,
        EXACT_MATCH,
        CONTAINS,
        REGEX,
        CHOICE,
        TOKEN_F1,
        BLEU,
        CHRF,
        ROUGE_1,
        ROUGE_2,
        ROUGE_L,
        JSON_VALID,
        JSON_FIELDS,
        TOOL_NAMES,
        TOOL_CALLS,
        PREFERENCE_ACCURACY,
        REWARD_MARGIN,
        GENERAL_LOSS,
        JUDGE_WIN_RATE,
    )
}


def metric_of(name: str) -> Metric:
    """The record of a figure: one of METRICS, or that of a benchmark. Raises `KeyError` for a name that is none."""
    return METRICS[name] if name in METRICS or not NAME.fullmatch(name) else task_metric(name)


__all__ = ["METRICS", "Metric", "Options", "metric_of"]
