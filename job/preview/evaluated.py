"""How much an evaluation asks of the models and of others, as far as a spec and its rows say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from job.data.build import Prepared
from job.data.figures import sizes
from job.evaluation.metrics import metric_of
from job.evaluation.task_work import TaskRequests, TaskWork
from job.plan.cards import Card
from job.plan.duration import judged_seconds, measured_seconds
from job.plan.model_size import ModelSize
from job.spec import EvaluationSpec, JobSpec

BOTH = 2  # base and tuned model; orders in which a judge sees two answers


@dataclass(frozen=True)
class Evaluated:
    """Of base and tuned model together: `answers` of at most `answer_tokens` each, to questions of `prompt_tokens` in
    all, and `readings` of held-out and general rows, of `read_tokens` in all, for their losses. Requests and tokens of
    the judge at most, None without one.
    """

    answers: int
    answer_tokens: int
    prompt_tokens: int
    readings: int
    read_tokens: int
    judge_requests: int | None
    judge_tokens: int | None
    benchmarks: tuple[TaskWork, ...]

    def of_each(self) -> TaskRequests:
        """What one model is asked, benchmarks left out."""
        answers, readings = self.answers // BOTH, self.readings // BOTH
        return TaskRequests(
            readings, readings, self.read_tokens // BOTH,
            answers, self.prompt_tokens // BOTH, answers * self.answer_tokens,
        )  # fmt: skip

    def seconds(self, spec: JobSpec, size: ModelSize, card: Card) -> float:
        """Of one model, benchmarks left out; the cards of a machine share it, each with the whole model."""
        cards = 1 if spec.model.adapters else spec.resources.known_gpus
        return measured_seconds(spec, size, card, self.of_each(), cards)

    @property
    def judge_seconds(self) -> float:
        return judged_seconds(self.judge_requests or 0)


def evaluated(
    spec: EvaluationSpec, questions: Sequence[int], readings: Sequence[int], benchmarks: tuple[TaskWork, ...] = ()
) -> Evaluated:
    """Of so many tokens of each question that is answered, and of each row whose loss is measured."""
    judge, answers = spec.judge, BOTH * len(questions)
    return Evaluated(
        answers=answers,
        answer_tokens=spec.max_new_tokens,
        prompt_tokens=BOTH * sum(questions),
        readings=BOTH * len(readings),
        read_tokens=BOTH * sum(readings),
        judge_requests=min(answers, judge.max_requests) if judge else None,
        judge_tokens=judge.max_tokens if judge else None,
        benchmarks=benchmarks,
    )


def generates(spec: EvaluationSpec) -> bool:
    """Whether held-out questions are answered."""
    return any(metric_of(name).needs_answers for name in spec.metrics)


def question_tokens(spec: EvaluationSpec, prepared: Prepared) -> list[int]:
    """Of each question that is answered."""
    asked = [*prepared.questions, *(prepared.exact_match if generates(spec) else [])]
    return [len(question.input_ids) for question in asked]


def read_tokens(prepared: Prepared) -> list[int]:
    """Of each row whose loss is measured."""
    measured = [rows for rows in (prepared.held_out, prepared.general) if rows is not None]
    return [length for rows in measured for length in sizes(rows)[0].tolist()]
