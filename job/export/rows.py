"""The job's own rows on which exports are compared, the importance matrix is taken, and questions are asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from job.data.build import Prepared, Question
from job.data.worker.wire import IGNORED

MIN_ROW_TOKENS = 2
LOOKED_AT_ROWS = 64
PLAIN_PROMPT_TOKENS = 8  # of a text without question and answer
ASKED_PROMPTS = 4  # of the spec's, which every artefact answers
ASKED_ROWS = 64  # of evaluation.exact_match_rows
COMPARED = 4  # a random stream of its own, beside those of job.data.select

Row = dict[str, list[int]]


@dataclass(frozen=True)
class Compared:
    """Held-out rows, or training rows where none are held out, on which the trained model and everything that is
    delivered are measured.

    `rows`: `input_ids` and `labels`, some of them cut; `whole` if they are every held-out row uncut.
    """

    rows: list[Row]
    held_out: bool
    whole: bool

    @property
    def ids(self) -> list[list[int]]:
        return [row["input_ids"] for row in self.rows]

    @property
    def learned(self) -> list[int]:
        """Numbers, over the tokens of all rows one after the other, of those before a learned token."""
        found, start = [], 0
        for row in self.rows:
            found += [start + i for i, label in enumerate(row["labels"][1:]) if label != IGNORED]
            start += len(row["labels"])
        return found

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    def document(self) -> dict[str, Any]:
        """As it is written to stats.json."""
        return {
            "of": "held_out" if self.held_out else "train",
            "rows": len(self.rows),
            "tokens": self.tokens,
            "learned_tokens": len(self.learned),
            "all": self.whole,
        }


def compared_rows(prepared: Prepared, tokens: int, seed: int) -> Compared:
    """All held-out rows (training rows where none are held out) if they have at most `tokens`, else as many of them,
    drawn by `seed`, the last one cut.
    """
    return _compared(prepared.held_out or prepared.train, prepared.held_out is not None, tokens, seed)


def compared_general(prepared: Prepared, tokens: int, seed: int) -> Compared | None:
    """The same of general rows, where forgetting is measured."""
    return _compared(prepared.general, True, tokens, seed) if prepared.general else None


def _compared(rows: Any, held_out: bool, tokens: int, seed: int) -> Compared:
    numbers = list(range(len(rows)))
    found = list(_within(rows, numbers, tokens))
    whole = len(found) == len(numbers) and len(found[-1]["input_ids"]) == len(rows[-1]["input_ids"])
    if not whole:
        found = list(_within(rows, drawn(len(rows), seed), tokens))
    useful = [row for row in found if any(label != IGNORED for label in row["labels"][1:])]  # the cut one may not be
    return Compared(useful or [_learned_window(rows, tokens)], held_out, whole and held_out)


def drawn(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order that `seed` decides."""
    import numpy

    order: list[int] = numpy.random.RandomState([seed, COMPARED]).permutation(count).tolist()
    return order


def _within(rows: Any, numbers: list[int], tokens: int) -> Iterator[Row]:
    left = tokens
    for number in numbers:
        if left < MIN_ROW_TOKENS:
            return
        row = {name: list(rows[number][name][:left]) for name in ("input_ids", "labels")}
        if len(row["input_ids"]) >= MIN_ROW_TOKENS:
            yield row
            left -= len(row["input_ids"])


def _learned_window(rows: Any, tokens: int) -> Row:
    """A part, `tokens` long, of the row whose answer begins first: all others' come after as many, too."""
    row = min((rows[i] for i in range(min(len(rows), LOOKED_AT_ROWS))), key=_start)
    end = min(len(row["labels"]), max(1, _start(row)) + tokens // 2)
    return {name: list(row[name][max(0, end - tokens) : end]) for name in ("input_ids", "labels")}


def calibration_rows(prepared: Prepared, tokens: int) -> list[list[int]]:
    """Token ids of training rows, `tokens` in all."""
    return [row["input_ids"] for row in _within(prepared.train, list(range(len(prepared.train))), tokens)]


def check_prompt(prepared: Prepared) -> list[int]:
    """The prompt of a held-out row: everything before its first learned token, so that the answer must follow and end.

    Of the first rows, the one with the shortest answer: every GGUF has to give it, on the CPU.
    """
    rows = prepared.held_out or prepared.train
    row = min(
        (rows[i] for i in range(min(len(rows), LOOKED_AT_ROWS))), key=lambda row: len(row["labels"]) - _start(row)
    )
    return list(row["input_ids"][: _start(row) or PLAIN_PROMPT_TOKENS])


def asked_questions(prepared: Prepared) -> tuple[list[Question], list[Question]]:
    """What every artefact is asked: prompts of the spec, and held-out questions whose answer is known."""
    return prepared.questions[:ASKED_PROMPTS], prepared.exact_match[:ASKED_ROWS]


def _start(row: Row) -> int:
    """Index of the first learned token."""
    return next((i for i, label in enumerate(row["labels"]) if label != IGNORED), 0)
