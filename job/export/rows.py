"""The job's own rows on which exports are compared and channels are weighed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from job.data.worker.wire import IGNORED

if TYPE_CHECKING:
    from job.data.build import Prepared

MIN_ROW_TOKENS = 2
LOOKED_AT_ROWS = 64
PLAIN_PROMPT_TOKENS = 8  # of a text without question and answer


def check_rows(prepared: Prepared, tokens: int) -> list[list[int]]:
    """Token ids of held-out rows (of training rows where none are held out), `tokens` in all; the last one is cut."""
    return list(_first_rows(prepared.held_out or prepared.train, tokens))


def longest_row(prepared: Prepared, tokens: int) -> int:
    """Length in tokens of the longest of `check_rows`."""
    return max(map(len, check_rows(prepared, tokens)), default=0)


def calibration_rows(prepared: Prepared, tokens: int) -> list[list[int]]:
    """Token ids of training rows, `tokens` in all."""
    return list(_first_rows(prepared.train, tokens))


def check_prompt(prepared: Prepared) -> list[int]:
    """The prompt of a held-out row: everything before its first learned token, so that the answer must follow and end.

    Of the first rows, the one with the shortest answer: every GGUF has to give it, on the CPU.
    """
    rows = prepared.held_out or prepared.train
    row = min(
        (rows[i] for i in range(min(len(rows), LOOKED_AT_ROWS))), key=lambda row: len(row["labels"]) - _start(row)
    )
    return list(row["input_ids"][: _start(row) or PLAIN_PROMPT_TOKENS])


def _start(row: dict[str, list[int]]) -> int:
    """Index of the first learned token."""
    return next((i for i, label in enumerate(row["labels"]) if label != IGNORED), 0)


def _first_rows(rows: Any, tokens: int) -> Iterator[list[int]]:
    left = tokens
    for row in rows:
        ids = list(row["input_ids"][:left])
        if len(ids) < MIN_ROW_TOKENS:
            return
        yield ids
        left -= len(ids)
