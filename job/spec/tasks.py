"""Benchmarks, as a spec names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskRowsSpec:
    """Columns of rows that are a task of their own. `choices`: of every row; answers are generated where neither these
    nor a column of them are named.
    """

    question: str
    answer: str
    choices: tuple[str, ...] | None
    choices_column: str | None


@dataclass(frozen=True)
class TaskSpec:
    """`name` is lm-eval's, or, with `rows`, whatever the user calls it. `few_shot` None: as the task has it. `merged`:
    the merged weights are measured, too.
    """

    name: str
    few_shot: int | None
    limit: int | None
    chat_template: bool
    source: str | None
    subset: str | None
    split: str
    rows: TaskRowsSpec | None
    merged: bool = False


def places_of(tasks: Sequence[TaskSpec] | None) -> list[tuple[str, str]]:
    """Of benchmarks whose rows are somewhere else than at the Hub under their own names: pointer and address."""
    return [(f"/evaluation/tasks/{index}/source", task.source) for index, task in enumerate(tasks or ()) if task.source]
