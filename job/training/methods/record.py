"""What a training method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from job.spec import JobSpec


@dataclass(frozen=True)
class Method:
    """One way to learn from prepared rows; a new one is a module here and a line in `METHODS`.

    `trainer_classes` are the config and the trainer of trl, as the engine has patched them, imported when they are
    called. `arguments` are those of the config beyond `job.training.arguments`. `check` raises `CapacityError` where
    the trainer, once it is made, is not set as the spec says. `held_out_loss` is the mean over held-out rows, in nats
    a token, of (model, rows, rows at once, id that pads).
    """

    name: str
    columns: tuple[str, ...]  # of a prepared row
    trainer_classes: Callable[[], tuple[type, type]]
    arguments: Callable[[JobSpec], dict[str, Any]]
    check: Callable[[Any, JobSpec], None]
    held_out_loss: Callable[[Any, Any, int, int], float]
