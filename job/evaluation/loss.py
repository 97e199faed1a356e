"""The mean loss of held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from job.data.worker.wire import IGNORED
from job.errors import GateError
from job.evaluation.shares import WHOLE, Batch, Share, by_rows
from job.host.micro_batch import in_halves


def loss_of(model: Any, rows: Any, batch_rows: int, pad_token_id: int) -> float:
    """Mean cross-entropy in nats over the trained tokens of `rows` (columns input_ids, labels); batch-independent.
    Raises `GateError` if it is not finite.
    """
    total, tokens = summed_loss(model, rows, batch_rows, pad_token_id)
    require_finite(total)
    return total / tokens


def summed_loss(model: Any, rows: Any, batch_rows: int, pad_token_id: int, share: Share = WHOLE) -> tuple[float, int]:
    """The same before it is divided: nats, and the trained tokens, of the rows of a share."""
    import torch

    def measured(batch: list[dict[str, list[int]]]) -> list[tuple[float, int]]:
        return [_summed(model, batch, pad_token_id)]

    with torch.no_grad():
        sums = [one for _, batch in _batches(rows, batch_rows, share) for one in in_halves(batch, measured)]
    return sum(loss for loss, _ in sums), sum(count for _, count in sums)


def losses_of(
    model: Any, rows: Any, batch_rows: int, pad_token_id: int, progress: Callable[[int], object] = lambda _: None,
    share: Share = WHOLE,
) -> list[tuple[float, float] | None]:  # fmt: skip
    """Of each row, loss in nats over all trained tokens, and how many; None for those of another's share. `progress`
    is called with rows done. Raises `GateError` if a loss is not finite.
    """
    import torch

    def measured(batch: list[dict[str, list[int]]]) -> list[tuple[float, float]]:
        inputs = _padded(batch, pad_token_id, model.device)
        labels = inputs["labels"][:, 1:]
        counts = (labels != IGNORED).sum(1).tolist()
        if len(batch) == 1:  # by the model itself: some engines need no room for logits
            return [(float(model(**inputs).loss) * counts[0], float(counts[0]))]
        del inputs["labels"]
        logits = model(**inputs).logits[:, :-1]
        nats = [
            torch.nn.functional.cross_entropy(said[wanted != IGNORED].float(), wanted[wanted != IGNORED])
            for said, wanted in zip(logits, labels, strict=True)
        ]
        return [(float(mean) * count, float(count)) for mean, count in zip(nats, counts, strict=True)]

    found: list[tuple[float, float] | None] = [None] * len(rows)
    total, done = 0.0, 0
    with torch.no_grad():
        for numbers, batch in _batches(rows, batch_rows, share):
            for number, one in zip(numbers, in_halves(batch, measured), strict=True):
                found[number] = one
                total += one[0]
            done += len(numbers)
            progress(done)
    require_finite(total)
    return found


def require_finite(total: float) -> None:
    """Raises `GateError` for a loss that is not a number."""
    if not math.isfinite(total):
        raise GateError(
            "the model has diverged: its loss is not a number",
            found=str(total),
            expected="a finite value",
            hint="Weights hold values that are not numbers, or overflow in this precision",
        )


def nats_of(model: Any, row: dict[str, list[int]], pad_token_id: int) -> tuple[float, int]:
    """The summed cross-entropy of a row's trained tokens, nats, and their number."""
    import torch

    with torch.no_grad():
        return _summed(model, [row], pad_token_id)


def _summed(model: Any, batch: list[dict[str, list[int]]], pad_token_id: int) -> tuple[float, int]:
    inputs = _padded(batch, pad_token_id, model.device)
    count = int((inputs["labels"][:, 1:] != IGNORED).sum())
    return float(model(**inputs).loss) * count, count


def _batches(rows: Any, size: int, share: Share) -> Iterator[tuple[Batch, list[dict[str, list[int]]]]]:
    """Numbers of rows, and the rows."""

    def padded_tokens(numbers: Batch) -> int:
        return len(numbers) * max(len(rows[number]["input_ids"]) for number in numbers)

    for numbers in share.of(by_rows(len(rows), size), padded_tokens):
        yield numbers, [rows[number] for number in numbers]


def _padded(batch: list[dict[str, list[int]]], pad_token_id: int, device: Any) -> dict[str, Any]:
    import torch

    width = max(len(row["input_ids"]) for row in batch)
    columns = {"input_ids": pad_token_id, "labels": IGNORED, "attention_mask": 0}
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in batch]
    return {
        name: torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in rows], device=device)
        for name, filler in columns.items()
    }
