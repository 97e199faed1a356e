"""What rows are like: enough of them is read to say which spec fits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, cast

from job.data.columns import ColumnUse
from job.data.files import is_sentence
from job.data.fit import HEADLESS, Fit, answers_of, best_fit
from job.data.read import Row
from job.data.sources import Selection
from job.data.worker.messages import REASONING, RowFault
from job.data.worker.shape import FORMATS, Chat, Columns, Document, Example, Preference, shape
from job.errors import Fault, InputError
from job.host.credentials import looks_secret
from job.source import FetchedSource, fetch_glimpse
from job.spec import SourceSpec
from job.training.methods import METHODS

POINTER = "/data/train/0"
HUB, DATASETS = "hf://", "hf://datasets/"
LOOKED = 1000  # rows
SHOWN_FAULTS = 3
SAID_OTHERWISE = {*REASONING, "tool_calls"}  # of a message, besides its content
PROMPTS, PROMPT_CHARACTERS, OPENING_WORDS = 3, 2000, 8
SHORT_CHARACTERS = 300  # of a prompt; longer ones are asked where there are no shorter ones


@dataclass(frozen=True)
class Looked:
    """The first rows of a source, each with its `places` in words, and the format that fits them. `whole`: whether
    `count` is that of all rows, or of the first file's.
    """

    source: FetchedSource
    rows: list[Row]
    places: list[str]
    count: int
    whole: bool
    fit: Fit
    remarks: list[str]

    @property
    def method(self) -> str:
        """The plainest one that learns from such rows."""
        return next(name for name, method in METHODS.items() if self.fit.format in method.formats)

    def faults(self) -> list[str]:
        """Rows that cannot be used, and why."""
        return [f"{self.places[number]}: {reason}" for number, reason in self.fit.faults]


def source_spec(address: str, split: str) -> SourceSpec:
    """The source that an address means; `hf://owner/name/subset` is a subset of the data set `hf://datasets/owner/name`."""
    subset = None
    if address.startswith(HUB):
        name, at, revision = address.removeprefix(HUB).removeprefix("datasets/").partition("@")
        owner, name, *rest = [*name.split("/", 2), ""]
        address, subset = f"{DATASETS}{owner}/{name}{at}{revision}", rest[0] or None
    return SourceSpec(address, "template", split, subset, {}, None, None, 1.0)


def look(spec: SourceSpec, named: Mapping[str, str], workdir: Path) -> Looked:
    """What the rows of a source are like; `named`: columns by what the format calls them.

    Raises `InputError` for what cannot be read, and for rows that no format fits.
    """
    source, whole = fetch_glimpse(spec, POINTER, workdir)
    selection = Selection(source)
    seen = list(islice(selection, LOOKED))
    rows = [json.loads(selection.dumped(row)) for row in seen]
    places = [row.place for row in seen]
    fit = best_fit(rows, named)
    if fit is None:
        raise _no_format(rows[0], named)
    if fit.example is None:
        faults = [Fault(f"{places[number]}: {reason}", where=POINTER) for number, reason in fit.faults[:SHOWN_FAULTS]]
        raise InputError(Fault(f"none of {len(rows)} rows can be used as format {fit.format}", where=POINTER), *faults)
    fitting = replace(spec, format=cast(Any, fit.format), columns=fit.columns)
    source = replace(source, spec=fitting)
    columns = ColumnUse(fitting, POINTER)
    for row in seen:
        columns.see(row.row, row.all_text)
    said = [*Selection(source).remarks(), *columns.notes()]
    return Looked(source, rows, places, len(selection), whole, fit, said)


def _no_format(row: Row, named: Mapping[str, str]) -> InputError:
    known = [f"{' and '.join(form.required)} ({name})" for name, form in FORMATS.items() if form.required]
    given = f"; named {', '.join(f'{name}={column}' for name, column in named.items())}" if named else ""
    return InputError(
        "no format fits these columns",
        where=f"{POINTER}/columns",
        found=f"{', '.join(map(str, row)) or 'none'}{given}",
        expected=" or ".join(known),
        hint=HEADLESS
        if any(is_sentence(name) for name in row)
        else "Say which is which, such as --columns instruction=A,output=B where A asks and B answers",
    )


def prompts_of(looked: Looked) -> list[str | dict[str, str]]:
    """Questions of three rows far apart, short ones if there are, as a spec has prompts: with the answer of the row. Of
    documents, their first words.
    """
    answers: dict[str, str] = {}
    for _, example in _examples(looked):
        first = answers_of(example)[0]
        if isinstance(first, Chat):
            for question, answer in _first_turn(first):
                answers.setdefault(question, answer if getattr(example, "desirable", True) else "")
        elif isinstance(first, Document):
            answers.setdefault(" ".join(first.text.split()[:OPENING_WORDS]), "")
    usable = [text for text in answers if _may_be_in_a_spec(text)]
    short = [text for text in usable if len(text) <= SHORT_CHARACTERS]
    if len(short) < PROMPTS:
        short = sorted(usable, key=len)[:PROMPTS]
    last = len(short) - 1
    chosen = [short[number] for number in dict.fromkeys((0, last // 2, last))] if short else []
    return [
        {"prompt": text, "reference": answers[text]} if _may_be_in_a_spec(answers[text]) else text for text in chosen
    ]


def _first_turn(chat: Chat) -> Iterator[tuple[str, str]]:
    """The first question and its answer, which is empty where another message follows; nothing without a question."""
    for message, following in zip(chat.messages, [*chat.messages[1:], {}], strict=True):
        if message["role"] == "user":
            yield message["content"], following["content"] if following.get("role") == "assistant" else ""
            return


def unanswered(looked: Looked) -> list[str]:
    """Places of rows of which an answer is empty: nothing is learned of them."""
    return [place for place, example in _examples(looked) if any(map(_is_empty, answers_of(example)))]


def undecided(looked: Looked) -> list[str]:
    """Places of pairs whose answers are the same: nothing is learned of them."""
    pairs = ((place, example) for place, example in _examples(looked) if isinstance(example, Preference))
    return [place for place, pair in pairs if pair.chosen == pair.rejected]


def _is_empty(answer: Example) -> bool:
    """Of a conversation: whether all its answers are."""
    spoken = answer.messages[answer.first_trained :] if isinstance(answer, Chat) else []
    answers = [message for message in spoken if message["role"] == "assistant"]
    return bool(answers) and not any(each["content"].strip() or each.keys() & SAID_OTHERWISE for each in answers)


def _examples(looked: Looked) -> Iterator[tuple[str, Example]]:
    """Place of each row that can be used, and what it is."""
    columns = Columns(looked.fit.columns)
    for place, row in zip(looked.places, looked.rows, strict=True):
        with suppress(RowFault):
            yield place, shape(looked.fit.format, row, columns)


def _may_be_in_a_spec(text: str) -> bool:
    halved = any("\ud800" <= character <= "\udfff" for character in text)
    return bool(text.strip()) and len(text) <= PROMPT_CHARACTERS and not looks_secret(text) and not halved


def name_of(address: str) -> str:
    """A name for the run, as Kubernetes takes it: what the file, the folder or the data set is called."""
    last = PurePosixPath(address.partition("@")[0] if address.startswith(HUB) else Path(address).absolute()).name
    return re.sub(r"[^a-z0-9]+", "-", last.partition(".")[0].lower()).strip("-")[:40].strip("-") or "my-run"
