"""Which format rows are of, and which names have its columns: for those who wrote neither, or wrong ones."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from job.data.files import is_sentence
from job.data.worker.messages import RowFault
from job.data.worker.shape import ANSWERED, FORMATS, Chat, Columns, Example, Labelled, Preference, Row, shape
from job.spec import SourceSpec
from job.training.methods import METHODS

CONSIDERED = 200  # columns, where a name is looked for that may have been meant
HEADLESS = "A row is where the columns' names belong: write them above it, such as question,answer"
# Names under which data sets have what a format calls otherwise, the usual ones first.
QUESTION = ("question", "q", "query", "instruction", "prompt", "input", "user", "problem")
ANSWER = ("answer", "a", "response", "output", "completion", "reply", "assistant", "solution", "target", "chosen")
CONVERSATION = ("conversation", "conversations", "messages", "chat", "dialog", "dialogue", "chosen")
USUAL_NAMES = {
    "prompt": QUESTION,
    "completion": ANSWER,
    "instruction": QUESTION,
    "output": ANSWER,
    "messages": CONVERSATION,
    "conversations": CONVERSATION,
    "label": ("kto_tag",),
    "text": ("content", "document", "body"),
}
# The same for columns that a row may lack: taken where nobody has said what they are, not for what was misspelt.
USUAL_ADDITIONS = {"input": ("context",), "system": ("system_prompt",)}
# What rows are tried as, the plain ones first.
TRIED = ("sft", "dpo", "kto")
# Formats that have one of several sets of columns. A prompt that is text is an instruction: it becomes a conversation.
WAYS = {
    "preference": (FORMATS["preference"].required, (*FORMATS["preference"].required, "instruction")),
    "kto": tuple((*FORMATS["kto"].required, *names) for names in ANSWERED.values()),
}


@dataclass(frozen=True)
class Fit:
    """A format, the `columns` that it has under other names, and the first row that it can read, as it reads it.

    `faults`: number of a row, from 0, and why it cannot be used, of each that cannot.
    """

    format: str
    columns: dict[str, str]
    example: Example | None
    faults: tuple[tuple[int, str], ...]
    compares: bool = False  # whether most rows say of answers which are better

    @property
    def is_chat(self) -> bool:
        """Whether a chat template puts its rows in words."""
        return all(isinstance(answer, Chat) for answer in answers_of(self.example))


def answers_of(example: Example | None) -> tuple[Example, ...]:
    """What is learned of a row: itself, the two of a pair, or the answer that has a label."""
    if isinstance(example, Preference):
        return example.chosen, example.rejected
    return (example.answer if isinstance(example, Labelled) else example,) if example else ()


def best_fit(rows: Sequence[Row], named: Mapping[str, str], methods: Sequence[str] = TRIED) -> Fit | None:
    """The format of `methods` that fits `rows` best: one that compares answers where they do, then the one that most
    of them can be read in, as conversations rather than as raw text, under the fewest other names. None where no format
    has such columns. `named`: columns whose names are known.
    """
    found = [fit for method in methods for kind in METHODS[method].formats for fit in _fits(kind, rows, named)]
    return min(
        found, key=lambda fit: (not fit.compares, len(fit.faults), not fit.is_chat, len(fit.columns)), default=None
    )


def _fits(kind: str, rows: Sequence[Row], named: Mapping[str, str]) -> Iterator[Fit]:
    form = FORMATS[kind]
    if form.example is None or not named.keys() <= set(form.columns):
        return
    for required in WAYS.get(kind, (form.required,)):
        columns = dict(named) | _guessed(kind, required, rows[0], named)
        if any(columns.get(name, name) not in rows[0] for name in (*required, *named)):
            continue
        renamed = {name: column for name, column in columns.items() if name != column}
        examples, faults = _read(kind, rows, renamed)
        fit = Fit(kind, renamed, next(iter(examples), None), tuple(faults), _compare(examples, len(rows)))
        if fit.compares or kind in METHODS["sft"].formats:
            yield fit


def _compare(examples: Sequence[Example], rows: int) -> bool:
    """A column called label may be about something else, and good answers alone are learned as they are."""
    labels = {example.desirable for example in examples if isinstance(example, Labelled)}
    pairs = any(isinstance(example, Preference) for example in examples)
    return (pairs or len(labels) == 2) and len(examples) > rows / 2


def _read(kind: str, rows: Sequence[Row], columns: dict[str, str]) -> tuple[list[Example], list[tuple[int, str]]]:
    examples, faults = [], []
    for number, row in enumerate(rows):
        try:
            examples.append(shape(kind, row, Columns(columns)))
        except RowFault as error:
            faults.append((number, str(error)))
    return examples, faults


def _guessed(kind: str, required: Sequence[str], row: Row, named: Mapping[str, str]) -> dict[str, str]:
    """Columns of `row` that are most likely what the format asks for, and nobody has named."""
    guessed: dict[str, str] = {}
    for name in FORMATS[kind].columns:
        if name in row or name in named:
            continue
        taken = {*named.values(), *guessed.values(), *required}
        free = {column: value for column, value in row.items() if column not in taken}
        usual = USUAL_ADDITIONS.get(name, ())
        if column := _meant(name, name, free) if name in required else next((c for c in usual if c in free), ""):
            guessed[name] = column
    return guessed


def way_out(row: Row, spec: SourceSpec) -> str:
    """Of a row that lacks columns of its format: another format that it has, or the `columns` to write."""
    formats = [
        name for name, kind in FORMATS.items() if kind.required and all(column in row for column in kind.required)
    ]
    if spec.format == "kto":  # what it adds to the others is the label
        formats = [name for name in formats if name == "preference"]
    if any(is_sentence(name) for name in islice(row, CONSIDERED)):
        return HEADLESS
    if formats:
        return f"The columns fit format {formats[0]}"
    missing = {name: spec.columns.get(name, name) for name in (*FORMATS[spec.format].required, *spec.columns)}
    guessed = {name: _meant(name, column, row) for name, column in missing.items() if column not in row}
    if all(guessed.values()) and len(set(guessed.values())) == len(guessed):
        return f'Write "columns": {json.dumps({**spec.columns, **guessed}, ensure_ascii=False)}'
    pair = {name: _meant(name, name, row) for name in FORMATS["alpaca"].required}
    if all(pair.values()) and len(set(pair.values())) == len(pair):
        return f'Write "format": "alpaca", "columns": {json.dumps(pair, ensure_ascii=False)}'
    return "Name the source's columns in columns, or use format template"


def _meant(name: str, column: str, row: Row) -> str:
    """The column of `row` that holds what the format calls `name`: misspelt, or under another usual name; or none."""
    columns = {str(known).lower(): str(known) for known in islice(row, CONSIDERED)}
    if near := difflib.get_close_matches(column.lower(), columns, 1, 0.75):
        return columns[near[0]]
    return next((columns[usual] for usual in USUAL_NAMES.get(name, ()) if usual in columns), "")
