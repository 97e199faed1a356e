"""Which columns of a source are read, and what is said of the others, with counts over all rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from job.data.worker.messages import MARKS
from job.data.worker.shape import FORMATS, LABELS, Columns, is_chat
from job.spec import SourceSpec

Row = dict[str, Any]

SHOWN, SHOWN_CHARACTERS = 8, 40  # in a note
COUNTED = 1000  # columns that nothing reads: rows may have keys of their own without end
NOT_A_NUMBER = ("NaN", "nan")  # how Python writes a value that is missing where everything is text
MISSING_WORDS = (*NOT_A_NUMBER, "NA", "N/A", "<NA>", "null", "NULL", "None")
NOTHING: tuple[Any, ...] = (None, "", [], {})


class ColumnUse:
    """The columns of one source's rows; `pointer` is its place in the spec."""

    def __init__(self, spec: SourceSpec, pointer: str) -> None:
        kind = FORMATS[spec.format]
        self._pointer = pointer
        self._names = spec.columns
        self.required = [spec.columns.get(name, name) for name in kind.required]
        self.used = {spec.columns.get(name, name) for name in kind.columns} | set(kind.unnamed)
        marks = {*MARKS, *(LABELS if kind.has_answers else ())}
        self._read = self.used | marks
        self._format = spec.format
        texts = {spec.columns.get(name, name) for name in ("prompt", "completion")} & self.used
        self._of_raw_text = {*self.required, *texts, *marks}  # there is no place for more
        self._may_be_raw = "prompt" in kind.columns
        self._templates = " ".join(filter(None, asdict(spec.template).values())) if spec.template else None
        self._unread: Counter[str] = Counter()
        self._as_text: Counter[tuple[str, str]] = Counter()
        self._as_missing: Counter[tuple[str, str]] = Counter()

    def settled(self, row: Row) -> Row:
        """A row of a file in which all is text: NaN is null where a value may be missing; in a required column it is
        the text that the author wrote.
        """
        return {
            name: None if cell in NOT_A_NUMBER and name not in self.required else cell for name, cell in row.items()
        }

    def see(self, row: Row, all_text: bool) -> None:
        """Counts what of a row is not read as it is written. `all_text`: the row was settled."""
        raw = self._may_be_raw and not is_chat(self._format, row, Columns(self._names))
        read = self._of_raw_text if raw else self._read
        known = read if self._templates is None else self._templates  # which read what they like
        for name, value in row.items():
            if name in known:
                if all_text and (value is None or value in MISSING_WORDS):
                    (self._as_missing if value is None else self._as_text)[name, value or NOT_A_NUMBER[0]] += 1
            elif value not in NOTHING and (len(self._unread) < COUNTED or name in self._unread):
                self._unread[name] += 1

    def notes(self) -> list[str]:
        unread, found = Counter(self._unread) if self._templates is None else Counter(), []
        if "chosen" in self._names.values() and (rejected := unread.pop("rejected", 0)):
            found.append(
                f"column rejected of {rejected} rows is not used; chosen is learned (training.method dpo, with format "
                "preference, learns from both)"
            )
        if unread:
            found.append(f"columns that nothing reads: {_listed({(name, ''): n for name, n in unread.items()})}")
        if self._as_text:
            found.append(f"cells that are taken as text, not as missing: {_listed(self._as_text)}")
        if self._as_missing:
            found.append(f"cells that are taken as missing: {_listed(self._as_missing)}")
        return [f"{self._pointer}: {note}" for note in found]


def _listed(counts: Mapping[tuple[str, str], int]) -> str:
    """ColumnUse, each with the word that is meant and how often."""
    shown = [
        f"{name[:SHOWN_CHARACTERS]!a}{f' {word}' if word else ''} ({count})"
        for (name, word), count in list(counts.items())[:SHOWN]
    ]
    others = f" and {len(counts) - SHOWN} others" if len(counts) > SHOWN else ""
    return ", ".join(shown) + others
