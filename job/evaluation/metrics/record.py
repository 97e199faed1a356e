"""What a metric is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.host.bounded import processor_seconds

DIGITS = 6  # of a figure, after the point
ANSWER_SECONDS = 3.0  # of the processor
Counts = tuple[float, ...]  # what one row adds; sums over rows make the figure, so that any choice of rows has one


@dataclass(frozen=True)
class Options:
    """What a spec says about its metrics, under these keys of `evaluation`."""

    regex: str | None = None
    json_schema: Mapping[str, Any] | None = None
    choices: tuple[str, ...] | None = None


OfAnswer = Callable[[str, str, Options], Counts | None]


def ratio(sums: Sequence[float]) -> float:
    """A mean: of the first sum over the second, which counts rows or tokens."""
    return sums[0] / sums[1]


def yes(held: bool) -> Counts:
    """What a row adds to a share of rows."""
    return float(held), 1.0


@dataclass(frozen=True)
class Metric:
    """One figure of a model: of its losses on held-out rows (nats and tokens of each), of its answers to held-out
    questions (`of_answer`), of how likely it finds each of a few answers (`of_choice`), of pairs (`of_margin`), or of
    what others say of it (`by_others`: a judge, a benchmark).

    The figure is a function of sums over rows; counts of None leave a row out, as its reference does not fit.
    """

    name: str  # in specs, stats.json and the manifest
    title: str  # in what people read: the name, a comma, the unit
    meaning: str  # in a few words, for the table of metrics
    lower_is_better: bool
    lowest: float  # a figure can be this, but where less is better it is always a little more; -inf for no limit
    highest: float = math.inf
    of_answer: OfAnswer | None = None  # counts of an answer and its reference
    of_choice: Callable[[Sequence[float], int], Counts] | None = None  # of log-probabilities, and which is right
    # Of how much higher the reward of a chosen answer is than that of the rejected one; of the trained model alone
    of_margin: Callable[[float], float] | None = None
    of_general: bool = False  # of the losses of general rows (nats and tokens)
    # Others say what each row adds; of base and trained model alone, and by benchmarks of merged weights
    by_others: bool = False
    figure: Callable[[Sequence[float]], float] = ratio
    unfit: str = ""  # what references are that are left out, after "they"
    option: str = ""  # the key of `evaluation` that it reads
    or_option: str = ""  # another, which may take its place
    needs_option: bool = False  # whether it says nothing without
    wrong: Callable[[Any], str] = lambda value: ""  # why the option's value cannot be used, "" if it can

    @property
    def of_losses(self) -> bool:
        """Whether it follows from the losses of held-out rows."""
        return not (self.needs_rows or self.of_general or self.trained_alone)

    @property
    def trained_alone(self) -> bool:
        """Whether it is measured of models in training alone, and not of what is delivered."""
        return self.of_margin is not None or self.by_others

    @property
    def needs_rows(self) -> bool:
        """Whether it is about held-out questions with known answers, `evaluation.exact_match_rows` of them."""
        return self.needs_answers or self.of_choice is not None

    @property
    def needs_answers(self) -> bool:
        """Whether these questions are answered for it."""
        return self.of_answer is not None

    def counts(self, answer: str, reference: str, options: Options) -> Counts | None:
        """What one answer adds. Raises `PolicyError` where the spec's option takes too long for it."""
        if self.of_answer is None:
            return None
        with processor_seconds(ANSWER_SECONDS, f"/evaluation/{self.option or 'metrics'}"):
            return self.of_answer(answer, reference, options)

    def gain(self, base: float, tuned: float) -> float:
        """By how much the tuned model is better; negative where it is worse. As exact as figures are stored."""
        return round(base - tuned if self.lower_is_better else tuned - base, DIGITS)
