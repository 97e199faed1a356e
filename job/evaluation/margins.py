"""By how much a model prefers the chosen answers of held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from job.errors import GateError
from job.evaluation.loss import nats_of
from job.training.methods.record import Rewards
from job.training.methods.reference_model import as_reference

Margins = tuple[float, ...]  # of an answer, beside each of those that it is preferred to
CHOSEN, REJECTED, DESIRABLE = "", "rejected_", "desirable"


def equal_margins(rows: Any) -> list[Margins]:
    """Those of a model that likes all answers alike, in the form of `margins_of`."""
    if DESIRABLE not in rows.column_names:
        return [(0.0,)] * len(rows)
    good = [bool(desirable[0]) for desirable in rows[DESIRABLE]]
    return [(0.0,)] * sum(good) if not all(good) else []


def margins_of(
    model: Any, rows: Any, rewards: Rewards, settings: Any, pad_token_id: int, progress: Callable[[int], object]
) -> list[Margins]:
    """The chosen answer's reward less the rejected one's, of each row; where rows are single answers, of each good one
    its reward less that of every bad one. `settings` are those of the method. Where the rewards are by a reference,
    `model` has an adapter. `progress(rows done)` is called as it goes.

    Raises `GateError` if one is not finite.
    """

    def reward(row: Any, part: str) -> float:
        answer = {name: row[f"{part}{name}"] for name in ("input_ids", "labels")}
        return _reward(model, answer, rewards, settings, pad_token_id)

    found: list[Margins] = []
    single: dict[bool, list[float]] = {True: [], False: []}  # by whether they are good
    for number in range(len(rows)):
        row = rows[number]
        if DESIRABLE in row:
            single[bool(row[DESIRABLE][0])].append(reward(row, CHOSEN))
        else:
            found.append((reward(row, CHOSEN) - reward(row, REJECTED),))
        progress(number + 1)
    found += [tuple(good - bad for bad in single[False]) for good in single[True] if single[False]]
    if not all(math.isfinite(margin) for margins in found for margin in margins):
        raise GateError("the model has diverged: a reward is not a number", found="a margin of NaN or infinity",
                        expected="finite values", hint="Lower training.learning_rate or the method's beta")  # fmt: skip
    return found


def _reward(model: Any, row: dict[str, list[int]], rewards: Rewards, settings: Any, pad: int) -> float:
    nats, tokens = nats_of(model, row, pad)
    reference = 0.0
    if rewards.by_reference:
        with as_reference(model):
            reference = -nats_of(model, row, pad)[0]
    return rewards.of(settings, -nats, reference, tokens)
