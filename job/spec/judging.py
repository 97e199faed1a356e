"""Who judges answers, and how, as a spec says it."""

from __future__ import annotations

from dataclasses import dataclass


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
