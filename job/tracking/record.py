"""What an experiment tracker is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "tunejob"  # where the tracker's own variables name no other


@dataclass(frozen=True)
class Begun:
    """The run that is tracked. `config`: settings by name, plain values. `folder`: what the tracker leaves there is
    stored with the report. A later try of the same run, with the same id, goes on with what the tracker has of it.
    """

    run_id: str
    name: str
    config: Mapping[str, Any]
    folder: Path


class Session(Protocol):
    """A tracker that listens."""

    def log(self, step: int, figures: Mapping[str, float]) -> object: ...

    def end(self, figures: Mapping[str, float], address: str, files: Sequence[Path], failure: str) -> object:
        """Figures of the whole run, where its results are, what there is to read; what it has failed of, if it has."""

    def close(self) -> object:
        """It goes on later."""


@dataclass(frozen=True)
class Tracker:
    """`variables` of the environment have keys and addresses; without those `needed` nothing reaches the tracker."""

    name: str
    module: str
    variables: tuple[str, ...] = ()
    needed: str | None = None
    begin: Callable[[Begun], Session] | None = None  # None: its files are written by the training itself


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under names such as `training.learning_rate`; of lists, what JSON has."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        found |= inner
    return found
