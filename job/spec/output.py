"""Where results and checkpoints go, as a spec says it."""

from __future__ import annotations

from dataclasses import dataclass


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
