"""Rows of one's own as a benchmark: what lm-eval reads of them, and how it learns what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from job.data.read import place, read_numbered
from job.data.worker.options import listed
from job.errors import Fault, InputError
from job.source.data import FetchedSource
from job.spec import SourceSpec, TaskSpec
from job.spec.sections import TaskRowsSpec

DOCUMENTS = "documents.jsonl"
QUESTION, ANSWER, CHOICES = "question", "answer", "choices"
NO_FILTER = "none"  # what lm-eval calls the answers as they are


def write_documents(rows: TaskRowsSpec, fetched: FetchedSource, pointer: str, folder: Path) -> Path:
    """The rows as lm-eval reads them, a column for each part of a question. Raises `InputError` if a row lacks one."""
    path = folder / DOCUMENTS
    faults = []
    with path.open("w", encoding="utf-8") as written:
        for file in fetched.files:
            for number, row in read_numbered(file, f"{pointer}/source"):
                try:
                    written.write(json.dumps(document_of(rows, row), ensure_ascii=False) + "\n")
                except ValueError as error:
                    faults.append(Fault(f"{place(file, number)}: {error}", where=f"{pointer}/rows"))
                if len(faults) == 3:
                    raise InputError(*faults)
    if faults:
        raise InputError(*faults)
    if not path.stat().st_size:
        raise InputError("no rows", where=f"{pointer}/source", expected="at least 1 row")
    return path


def source_of(task: TaskSpec) -> SourceSpec:
    """Where its rows are, as where rows of training are."""
    return SourceSpec(task.source or "", "text", task.split, task.subset, {}, None, None, 1.0)


def document_of(rows: TaskRowsSpec, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as lm-eval reads it. Raises `ValueError` for one that is not a question with its answer."""
    wanted = [rows.question, rows.answer, *([rows.choices_column] if rows.choices_column else [])]
    if missing := [name for name in wanted if name not in row]:
        raise ValueError(f"there is no column {missing[0]!r}, but {', '.join(map(str, row))}")
    question, answer = _text(row, rows.question), _text(row, rows.answer)
    if not has_choices(rows):
        if "\n" in answer.strip():
            raise ValueError(f"{rows.answer} has several lines, and one is generated")
        return {QUESTION: question, ANSWER: answer.strip()}
    letters, choices = listed(row[rows.choices_column] if rows.choices_column else list(rows.choices or ()))
    if not choices:
        raise ValueError(f"{rows.choices_column} is not a list of two or more texts")
    for known, said in ((choices, answer), (letters, answer.strip().upper())):
        if said in known:
            return {QUESTION: question, CHOICES: choices, ANSWER: known.index(said)}
    raise ValueError(f"{rows.answer} is {answer!r:.60}, which is none of the choices and no letter of one")


def has_choices(rows: TaskRowsSpec) -> bool:
    return bool(rows.choices or rows.choices_column)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} is not text")
    return value


def own_task(name: str, rows: TaskRowsSpec, documents: Path, max_new_tokens: int) -> dict[str, Any]:
    """lm-eval's configuration of a task on such documents."""
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents)}, "cache_dir": str(documents.parent / "cache")},
        "test_split": "test",
        "fewshot_split": "test",  # examples are other rows
        "doc_to_text": QUESTION,
        "doc_to_target": ANSWER,
        "metadata": {"version": 1},
    }
    if has_choices(rows):
        metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
        return config | {"output_type": "multiple_choice", "doc_to_choice": CHOICES, "metric_list": metrics}
    return config | {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": max_new_tokens},
        "filter_list": [{"name": NO_FILTER, "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
