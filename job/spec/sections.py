"""Sections of a spec that know nothing of the others: output, resources, benchmarks, judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HubSpec:
    repository: str
    private: bool


@dataclass(frozen=True)
class CheckpointsSpec:
    uri: str | None
    every_minutes: float
    every_steps: int | None
    keep: int
    max_failures: int


@dataclass(frozen=True)
class OutputSpec:
    uri: str
    hub: HubSpec | None
    checkpoints: CheckpointsSpec


@dataclass(frozen=True)
class ResourcesSpec:
    """`gpus`: cards that train together, "all" that the machine has. `nodes`: such machines.
    `weights`: each holds them "whole", or they are
    "spread" over them. `price_per_hour`: the user's, in a currency that they know.
    """

    gpus: int | str
    nodes: int
    weights: str
    price_per_hour: float | None

    @property
    def spreads(self) -> bool:
        return self.weights == "spread"

    @property
    def known_gpus(self) -> int:
        """Of "all" nobody knows before the run: 1, to reckon with."""
        return self.gpus if isinstance(self.gpus, int) else 1


@dataclass(frozen=True)
class TaskRowsSpec:
    """Columns of rows that are a task of their own. `choices`: of every row; answers are generated where neither these
    nor a column of them are named.
    """

    question: str
    answer: str
    choices: tuple[str, ...] | None
    choices_column: str | None


@dataclass(frozen=True)
class TaskSpec:
    """`name` is lm-eval's, or, with `rows`, whatever the user calls it. `few_shot` None: as the task has it. `merged`:
    the merged weights are measured, too.
    """

    name: str
    few_shot: int | None
    limit: int | None
    chat_template: bool
    source: str | None
    subset: str | None
    split: str
    rows: TaskRowsSpec | None
    merged: bool = False


@dataclass(frozen=True)
class PromptSpec:
    """A prompt with the answer that is expected."""

    prompt: str
    reference: str


def prompt_texts(prompts: Sequence[str | PromptSpec]) -> tuple[str, ...]:
    return tuple(each if isinstance(each, str) else each.prompt for each in prompts)


def references_of(prompts: Sequence[str | PromptSpec]) -> tuple[str | None, ...]:
    """Of each prompt the answer that is expected, None where the spec does not say it."""
    return tuple(None if isinstance(each, str) else each.reference for each in prompts)


def places_of(tasks: Sequence[TaskSpec] | None) -> list[tuple[str, str]]:
    """Of benchmarks whose rows are somewhere else than at the Hub under their own names: pointer and address."""
    return [(f"/evaluation/tasks/{index}/source", task.source) for index, task in enumerate(tasks or ()) if task.source]


def judges(spec: Any) -> list[str]:
    """Pointers of what a `JobSpec` needs the judge's endpoint for."""
    rewards = enumerate(spec.training.grpo.rewards if spec.training.grpo else ())
    found = [f"/training/grpo/rewards/{number}/judge" for number, reward in rewards if reward.judge]
    return [*found, "/evaluation/judge"] if spec.evaluation.judge else found


@dataclass(frozen=True)
class JudgeSpec:
    """`model` is the endpoint's name for it; the endpoint itself is the environment's."""

    model: str
    rubric: str
    max_requests: int
    max_tokens: int
    max_answer_tokens: int
    min_agreement: float


@dataclass(frozen=True)
class ScoringSpec:
    """Who says what single answers are worth to a training by reward."""

    model: str
    rubric: str
    max_requests: int
    max_tokens: int
    max_answer_tokens: int
