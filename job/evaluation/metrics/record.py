"""What a metric is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DIGITS = 6  # of a figure, after the point


@dataclass(frozen=True)
class Metric:
    """One figure of a model, from the mean loss of the held-out rows, from answers to held-out questions or from the
    margins of held-out pairs: exactly one of the three.
    """

    name: str  # in specs, stats.json and the manifest
    title: str  # in what people read
    lower_is_better: bool
    lowest: float  # a figure can be this, but where less is better it is always a little more; -inf for no limit
    highest: float = math.inf
    of_loss: Callable[[float], float] | None = None  # of nats a trained token
    # Of an answer and its reference; the figure is the mean over all
    of_answer: Callable[[str, str], float] | None = None
    # Of how much higher the reward of each chosen answer is than that of the rejected one; of the trained model alone
    of_margins: Callable[[Sequence[float]], float] | None = None

    @property
    def needs_answers(self) -> bool:
        """Whether questions with known answers are asked, `evaluation.exact_match_rows` of them."""
        return self.of_answer is not None

    def gain(self, base: float, tuned: float) -> float:
        """By how much the tuned model is better; negative where it is worse. As exact as figures are stored."""
        return round(base - tuned if self.lower_is_better else tuned - base, DIGITS)
