"""Prompts for generation: those of the spec, and held-out rows up to their last answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from job.data.pool import Pool
from job.data.sources import SelectedRow, Selection
from job.data.worker import wire

if TYPE_CHECKING:
    from job.data.select import Index


@dataclass(frozen=True)
class Question:
    """A prompt ready for generation; `reference` is the answer that is expected, if there is one.

    `choices`: the ids of each of the spec's choices after the first `shared` ids of the prompt, of which number `right`
    is the reference; none where the reference is none of them.
    """

    text: str
    input_ids: list[int]
    reference: str | None
    choices: list[list[int]] = field(default_factory=list)
    right: int = 0
    shared: int = 0


def ask_prompts(pool: Pool, job: wire.Job, prompts: tuple[str, ...]) -> list[Question]:
    """The prompts as user messages with a generation prompt, or raw where the job's rows are raw text."""
    if not prompts:
        return []
    reply = pool.ask(wire.Request("prompts", job, prompts=prompts))
    return [Question(*found) for found in reply.questions]


def ask_rows(
    pool: Pool, job: wire.Job, selections: list[Selection], alpaca_prompt: bool, rows: Index, count: int,
    choices: tuple[str, ...],
) -> list[Question]:  # fmt: skip
    """The first `count` of the given rows (numbers over all selections, ascending) that have an answer and fit.

    The rows are read again: nothing of a row's text is kept while the data set is built.
    """
    wanted = iter(rows.tolist())
    following = next(wanted, None)
    questions: list[Question] = []
    before = 0
    for selection in selections:
        for selected in selection:
            if following is None or len(questions) == count:
                return questions
            if before + selected.number == following:
                questions += _ask(pool, job, selection, alpaca_prompt, selected, choices)
                following = next(wanted, None)
        before += len(selection)
    return questions


def _ask(
    pool: Pool, job: wire.Job, selection: Selection, alpaca_prompt: bool, selected: SelectedRow,
    choices: tuple[str, ...],
) -> list[Question]:  # fmt: skip
    source, rows = selection.description(alpaca_prompt), (json.loads(selection.dumped(selected)),)
    reply = pool.ask(wire.Request("questions", job, choices=choices, source=source, rows=rows))
    found = [Question(*question) for question in reply.questions]
    return [question for question in found if len(question.input_ids) < job.max_seq_length]
