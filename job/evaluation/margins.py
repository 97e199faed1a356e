"""By how much a model prefers the chosen answers of held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from job.errors import GateError
from job.evaluation.loss import nats_of
from job.evaluation.shares import WHOLE, Batch, Share, by_rows
from job.training.methods.record import Rewards
from job.training.methods.reference_model import as_reference

Margins = tuple[float, ...]  # of an answer, beside each of those that it is preferred to
CHOSEN, REJECTED, DESIRABLE = "", "rejected_", "desirable"


def equal_margins(rows: Any) -> list[Margins]:
    """Those of a model that likes all answers alike, in the form of `margins`."""
    if DESIRABLE not in rows.column_names:
        return [(0.0,)] * len(rows)
    good = [bool(desirable[0]) for desirable in rows[DESIRABLE]]
    return [(0.0,)] * sum(good) if not all(good) else []


def rewards_of(
    model: Any, rows: Any, rewards: Rewards, settings: Any, pad_token_id: int, progress: Callable[[int], object],
    share: Share = WHOLE,
) -> list[float | None]:  # fmt: skip
    """The chosen answer's reward less the rejected one's, of each row, or, where rows are single answers, its reward;
    None for rows of another's share. `settings` are those of the method. Where the rewards are by a reference, `model`
    has an adapter. `progress(rows done)` is called as it goes.

    Raises `GateError` if one is not finite.
    """

    def reward(row: Any, part: str) -> float:
        answer = {name: row[f"{part}{name}"] for name in ("input_ids", "labels")}
        return _reward(model, answer, rewards, settings, pad_token_id)

    def tokens(numbers: Batch) -> int:
        return sum(len(rows[number][name]) for number in numbers for name in rows[number] if name.endswith("input_ids"))

    found: list[float | None] = [None] * len(rows)
    for done, (number,) in enumerate(share.of(by_rows(len(rows), 1), tokens), 1):
        row = rows[number]
        one = reward(row, CHOSEN) - (0.0 if DESIRABLE in row else reward(row, REJECTED))
        if not math.isfinite(one):
            said, hint = "a reward is not a number", "Lower training.learning_rate or the method's beta"
            raise GateError(
                f"the model has diverged: {said}", found=f"a reward of {one}", expected="finite values", hint=hint
            )
        found[number] = one
        progress(done)
    return found


def margins(rows: Any, found: Sequence[float | None]) -> list[Margins]:
    """Of `rewards_of`, each pair's; where rows are single answers, of each good one its reward less that of every bad
    one.
    """
    known = [(row, value) for row, value in zip(rows, found, strict=True) if value is not None]
    pairs: list[Margins] = [(value,) for row, value in known if DESIRABLE not in row]
    good, bad = (
        [value for row, value in known if DESIRABLE in row and bool(row[DESIRABLE][0]) is side]
        for side in (True, False)
    )
    return pairs + [tuple(one - other for other in bad) for one in good if bad]


def _reward(model: Any, row: dict[str, list[int]], rewards: Rewards, settings: Any, pad: int) -> float:
    nats, tokens = nats_of(model, row, pad)
    reference = 0.0
    if rewards.by_reference:
        with as_reference(model):
            reference = -nats_of(model, row, pad)[0]
    return rewards.of(settings, -nats, reference, tokens)
