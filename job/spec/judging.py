"""Who judges answers, and how, as a spec says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
