"""How a step is computed: how many rows go through the model at once, and how many of its layers keep what their
backward pass needs instead of computing it again. The rows of a step are the spec's; this only decides how fast they
are computed, and in how much memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from job.host.micro_batch import MicroBatch
from job.plan.cards import Card
from job.plan.duration import epoch_seconds
from job.plan.gpu_memory import activation_budget, activation_bytes, divisors, rows_at_once
from job.plan.model_size import ModelSize
from job.plan.schedule import Schedule
from job.spec import JobSpec
from job.training.methods import METHODS

SAME = 1.01  # times within that are the same: less memory decides
SHARED = 1.016  # times half of a step, for two cards that share it (8B on H200); of more it was not measured
AFTER_FAILURE = 0.6  # of the activations that did not fit


@dataclass(frozen=True)
class Choice:
    """`kept_layers` of the model's layers compute nothing again. `activation_bytes` as they are reckoned."""

    batch: MicroBatch
    kept_layers: int
    activation_bytes: int


@dataclass(frozen=True)
class Training:
    """What a choice is made for. `scheduled(rows)`: steps in passes of so many rows, shared by `cards` of a kind."""

    spec: JobSpec
    size: ModelSize
    scheduled: Callable[[int], Schedule]
    card: Card
    cards: int = 1

    @property
    def rows_a_step(self) -> int:
        return self.spec.training.batch_size * self.spec.training.gradient_accumulation_steps

    def choose(self, usable_bytes: float, longest_tokens: int | None = None) -> Choice:
        """The fastest that is reckoned to fit where PyTorch may have so many bytes; what needs least where nothing is.
        With the spec's own `micro_batch` where it has one.
        """
        may = rows_at_once(self.spec)
        rows = [count for count in may if self._passes(count) >= self.cards] or may[:1]
        budget = activation_budget(self.spec, self.size, int(usable_bytes))
        return self._fastest(rows, budget, longest_tokens) or self.choice(rows[0], 0, longest_tokens)

    def fits(self, choice: Choice, usable_bytes: float) -> bool:
        return choice.activation_bytes <= activation_budget(self.spec, self.size, int(usable_bytes))

    def choose_after(self, failed: Choice, usable_bytes: float | None = None) -> Choice | None:
        """The fastest with far smaller activations than those that did not fit after all, and that `usable_bytes` are
        reckoned to hold; None where they were the smallest.
        """
        least_rows = METHODS[self.spec.training.method].least_rows
        rows = [rows for rows in divisors(self.rows_a_step) if least_rows <= rows <= failed.batch.rows]
        if not rows:
            return None
        budget = failed.activation_bytes * AFTER_FAILURE
        if usable_bytes is not None:
            budget = min(budget, activation_budget(self.spec, self.size, int(usable_bytes)))
        smaller = self._fastest(rows, budget, None)
        if smaller:
            return smaller
        least = self.choice(rows[0], 0, None)
        return least if least.activation_bytes < failed.activation_bytes else None

    def _fastest(self, rows: list[int], budget: float, longest_tokens: int | None) -> Choice | None:
        fitting = [choice for count in rows if (choice := self._fitting(count, budget, longest_tokens))]
        if not fitting:
            return None
        seconds = {choice: self.seconds(choice) for choice in fitting}
        good = [choice for choice in fitting if seconds[choice] <= SAME * min(seconds.values())]
        return min(good, key=lambda choice: choice.activation_bytes)

    def _fitting(self, rows: int, budget: float, longest_tokens: int | None) -> Choice | None:
        """With as many layers kept as there is room for."""
        least, most = self.choice(rows, 0, longest_tokens), self.choice(rows, self.size.layers, longest_tokens)
        if least.activation_bytes > budget:
            return None
        if least == most or most.activation_bytes <= budget:
            return most
        a_layer = (most.activation_bytes - least.activation_bytes) / self.size.layers
        return self.choice(rows, int((budget - least.activation_bytes) / a_layer), longest_tokens)

    def choice(self, rows: int, kept_layers: int, longest_tokens: int | None = None) -> Choice:
        """That one; where the spec says what is computed again, it has its way."""
        checkpointing = self.spec.training.gradient_checkpointing
        if checkpointing != "auto":
            kept_layers = 0 if checkpointing else self.size.layers
        tokens = rows * (longest_tokens or self.scheduled(rows).longest_tokens)
        needed = activation_bytes(self.spec, self.size, tokens, kept_layers)
        return Choice(MicroBatch(rows, self.rows_a_step // rows), kept_layers, needed)

    def seconds(self, choice: Choice) -> float:
        """Of a pass over all rows on the cards: the one with the most forward passes of a step decides."""
        planned, passes = self.scheduled(choice.batch.rows), self._passes(choice.batch.rows)
        alone = epoch_seconds(self.spec, self.size, planned, self.card, choice.kept_layers)
        return alone * math.ceil(passes / self.cards) / passes * (SHARED if self.cards > 1 else 1.0)

    def _passes(self, rows: int) -> int:
        return self.rows_a_step // rows
