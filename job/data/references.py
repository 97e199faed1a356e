"""Whether the known answers of held-out questions are such as the spec's metrics can say something of."""

from __future__ import annotations

from job.data.questions import Question
from job.errors import Fault, InputError
from job.evaluation.metrics import METRICS, Metric, Options
from job.spec import EvaluationSpec


def reference_notes(spec: EvaluationSpec, questions: list[Question]) -> list[str]:
    """For people, of each metric: how many answers it leaves out, and how many are wrong by its option.

    Raises `InputError` for metrics that leave out all of them, `PolicyError` for an option that takes too long.
    """
    options = Options(spec.regex, spec.json_schema, spec.choices)
    notes, faults = [], []
    for index, name in enumerate(spec.metrics if questions else ()):
        metric = METRICS[name]
        fitting = [question for question in questions if _fits(metric, question, options)]
        wrong = [question for question in fitting if metric.option and _is_wrong(metric, question, options)]
        if not fitting:
            faults.append(_none_fits(metric, f"/evaluation/metrics/{index}", spec, questions))
        if len(fitting) < len(questions):
            left = len(questions) - len(fitting)
            notes.append(f"{left} of {len(questions)} held-out answers do not count for {name}: they {metric.unfit}")
        if wrong:
            notes.append(f"{len(wrong)} of {len(questions)} held-out answers are wrong themselves by {metric.option}")
    if faults:
        raise InputError(*faults)
    return notes


def _fits(metric: Metric, question: Question, options: Options) -> bool:
    if metric.of_choice is not None:
        return bool(question.choices)
    return metric.counts(question.reference or "", question.reference or "", options) is not None


def _is_wrong(metric: Metric, question: Question, options: Options) -> bool:
    counts = metric.counts(question.reference or "", question.reference or "", options)
    return counts is not None and metric.figure(counts) < metric.highest


def _none_fits(metric: Metric, pointer: str, spec: EvaluationSpec, questions: list[Question]) -> Fault:
    shown = " ".join((questions[0].reference or "").split())
    option = metric.or_option if metric.or_option and getattr(spec, metric.or_option) else metric.option
    return Fault(
        f"no held-out answer counts for {metric.name}",
        where=f"/evaluation/{option}" if option else pointer,
        found=f"{shown!r:.120}, for one",
        expected="answers that count",
        hint=f"All {len(questions)} {metric.unfit}",
    )
