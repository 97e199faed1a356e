"""Prompts for generation: those of the spec, and held-out rows up to their last answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from job.data.pool import Pool
from job.data.sources import SelectedRow, Selection
from job.data.worker import wire
from job.data.worker.messages import names
from job.errors import InputError
from job.spec.sections import PromptSpec, prompt_texts, references_of
from job.spec.wording import show

if TYPE_CHECKING:
    from job.data.select import Index


@dataclass(frozen=True)
class Question:
    """A prompt ready for generation; `reference` is the answer that is expected, if there is one.

    `choices`: the ids of each answer to choose from after the first `shared` ids of the prompt, of which number
    `right` is the reference, and their `texts`; none where the reference is none of them.
    """

    text: str
    input_ids: list[int]
    reference: str | None
    choices: list[list[int]] = field(default_factory=list)
    right: int = 0
    shared: int = 0
    texts: list[str] = field(default_factory=list)


def ask_prompts(pool: Pool, job: wire.Job, prompts: Sequence[str | PromptSpec]) -> list[Question]:
    """The prompts as user messages with a generation prompt, or raw where the job's rows are raw text."""
    if not prompts:
        return []
    reply = pool.ask(wire.Request("prompts", job, prompts=prompt_texts(prompts)))
    found = zip(reply.questions, references_of(prompts), strict=True)
    return [replace(Question(*question), reference=reference) for question, reference in found]


def ask_rows(
    pool: Pool, request: wire.Request, selections: list[Selection], alpaca_prompt: bool, rows: Index, count: int
) -> list[Question]:
    """The first `count` of the given rows (numbers over all selections, ascending) that have an answer and fit, asked
    by `request`.

    The rows are read again: nothing of a row's text is kept while the data set is built.
    """
    questions: list[Question] = []
    columns: set[str] = set()
    for selection, selected in _numbered(selections, rows):
        if len(questions) == count:
            break
        questions += _ask(pool, request, selection, alpaca_prompt, selected)
        columns |= selected.row.keys()
    if questions and request.choices_column and request.choices_column not in columns:
        where, found = "/evaluation/choices_column", show(request.choices_column)
        expected = f"one of {names(sorted(columns))}"
        raise InputError("no held-out row has this column", where=where, found=found, expected=expected)
    return questions


def _numbered(selections: list[Selection], rows: Index) -> Iterator[tuple[Selection, SelectedRow]]:
    """The rows with these numbers over all selections."""
    wanted = iter(rows.tolist())
    following, before = next(wanted, None), 0
    for selection in selections:
        for selected in selection:
            if following is None:
                return
            if before + selected.number == following:
                yield selection, selected
                following = next(wanted, None)
        before += len(selection)


def _ask(
    pool: Pool, request: wire.Request, selection: Selection, alpaca_prompt: bool, selected: SelectedRow
) -> list[Question]:
    source, rows = selection.description(alpaca_prompt), (json.loads(selection.dumped(selected)),)
    reply = pool.ask(replace(request, source=source, rows=rows))
    found = [Question(*question) for question in reply.questions]
    return [question for question in found if len(question.input_ids) < request.job.max_seq_length]
