"""How much an evaluation asks of the models and of others, as far as a spec and its rows say it."""

from __future__ import annotations

from dataclasses import dataclass

from job.evaluation.metrics import metric_of
from job.evaluation.task_work import TaskWork
from job.spec import EvaluationSpec

BOTH = 2  # base and tuned model; orders in which a judge sees two answers


@dataclass(frozen=True)
class Evaluated:
    """`answers` of base and tuned model together, each of at most `answer_tokens`. Requests and tokens of the judge at
    most, None without one.
    """

    answers: int
    answer_tokens: int
    judge_requests: int | None
    judge_tokens: int | None
    benchmarks: tuple[TaskWork, ...]


def evaluated(spec: EvaluationSpec, held_out_rows: int, benchmarks: tuple[TaskWork, ...] = ()) -> Evaluated:
    """Of so many held-out rows; those that have no answer are not known here."""
    generates = any(metric_of(name).needs_answers for name in spec.metrics)
    pairs = len(spec.prompts) + (min(spec.exact_match_rows, held_out_rows) if generates else 0)
    judge = spec.judge
    return Evaluated(
        answers=BOTH * pairs,
        answer_tokens=spec.max_new_tokens,
        judge_requests=min(BOTH * pairs, judge.max_requests) if judge else None,
        judge_tokens=judge.max_tokens if judge else None,
        benchmarks=benchmarks,
    )
