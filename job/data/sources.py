"""Selected rows of the sources, in batches for the workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from job.data.fit import way_out
from job.data.read import Row, count_rows, read_rows, remarks
from job.data.select import row_range
from job.data.worker import wire
from job.data.worker.shape import ALPACA_INPUT, FORMATS, LABELS
from job.errors import Fault, InputError

if TYPE_CHECKING:
    from job.source import FetchedSource

BATCH_ROWS = 256
BATCH_BYTES = 512 << 10
SHOWN_COLUMNS, SHOWN_CHARACTERS = 8, 40  # in a note


@dataclass(frozen=True)
class SelectedRow:
    """A row with its place: running number in its source, and words for messages."""

    number: int
    place: str
    row: Row


class Selection:
    """The rows of one source that its split slice and limit leave."""

    def __init__(self, source: FetchedSource) -> None:
        self.source = source
        self._counts = [count_rows(path, self.pointer) for path in source.files]
        self._range = row_range(source.spec, sum(self._counts))
        if not self._range:
            rows = sum(self._counts)
            hint = f"{source.spec.split} leaves none of them" if rows else "The files are empty"
            raise InputError(
                Fault(
                    "no rows",
                    where=self.pointer,
                    found=f"{rows} rows in {len(source.files)} files",
                    expected="at least 1 row",
                    hint=hint,
                )
            )

    @property
    def pointer(self) -> str:
        return f"{self.source.pointer}/source"

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[SelectedRow]:
        before = 0
        for path, count in zip(self.source.files, self._counts, strict=True):
            if before < self._range.stop and before + count > self._range.start:
                for number, row in enumerate(read_rows(path, self.pointer), before):
                    if number >= self._range.stop:
                        return
                    if number in self._range:
                        yield SelectedRow(number - self._range.start, f"{path.name} row {number - before + 1}", row)
            before += count

    def check_columns(self) -> bool:
        """Raises `InputError` if the first row lacks a needed column. Returns whether rows are conversations."""
        spec = self.source.spec
        row = next(iter(self)).row
        needed = [spec.columns.get(name, name) for name in FORMATS[spec.format].required]
        missing = [name for name in [*needed, *spec.columns.values()] if name not in row]
        if missing:
            expected = ", ".join(dict.fromkeys([*needed, *spec.columns.values()]))
            where, found = f"{self.source.pointer}/columns", ", ".join(map(str, row)) or "none"
            raise InputError(
                Fault(
                    f"format {spec.format} misses columns",
                    where=where,
                    found=found,
                    expected=expected,
                    hint=way_out(row, spec),
                )
            )
        if spec.format == "prompt_completion":
            return not isinstance(row[needed[0]], str)
        return FORMATS[spec.format].is_chat

    def description(self, alpaca_prompt: bool) -> wire.Source:
        """What a worker needs to know of the source."""
        spec = self.source.spec
        template = dataclasses.asdict(spec.template) if spec.template else {}
        return wire.Source(
            pointer=self.source.pointer,
            format=spec.format,
            columns=spec.columns,
            template={role: text for role, text in template.items() if text is not None},
            input_joint=ALPACA_INPUT if alpaca_prompt else "\n\n",
        )

    def remarks(self) -> list[str]:
        """What was taken for granted in reading the files, and which columns of the first row nothing reads."""
        found = [remark for path in self.source.files for remark in remarks(path, self.pointer)]
        unread = self._unread_columns()
        if "rejected" in unread and "chosen" in self.source.spec.columns.values():
            found.append(f"{self.pointer}: column rejected of {len(self)} rows is not used; chosen is learned")
            unread.remove("rejected")
        if unread:
            shown = ", ".join(ascii(name[:SHOWN_CHARACTERS]) for name in unread[:SHOWN_COLUMNS])
            others = f" and {len(unread) - SHOWN_COLUMNS} others" if len(unread) > SHOWN_COLUMNS else ""
            found.append(f"{self.pointer}: columns that nothing reads: {shown}{others}")
        return found

    def _unread_columns(self) -> list[str]:
        """None where the source's own templates read what they like."""
        spec, row = self.source.spec, next(iter(self)).row
        kind = FORMATS[spec.format]
        if kind.example is None:
            return []
        required = [spec.columns.get(name, name) for name in kind.required]
        read = {*required, *(LABELS if kind.has_answers else ())}
        if spec.format != "prompt_completion" or not isinstance(row.get(required[0]), str):  # raw text is all there is
            read |= {*kind.unnamed, *(spec.columns.get(name, name) for name in kind.optional)}
        return [name for name in map(str, row) if name not in read]

    def dumped(self, selected: SelectedRow) -> bytes:
        """The row as JSON. Bytes that are not text have no place in it: `InputError` where the format reads them."""
        try:
            return wire.dump(selected.row)
        except wire.NotTextError:
            odd = [name for name, value in selected.row.items() if _holds_bytes(value)]
        spec = self.source.spec
        used = {spec.columns.get(name, name) for name in FORMATS[spec.format].columns}
        if found := used.intersection(odd):
            message = f"{selected.place}: {min(found)} must be text, not bytes"
            raise InputError(Fault(message, where=self.pointer, expected="UTF-8"))
        return wire.dump({name: value for name, value in selected.row.items() if name not in odd})

    def batches(self) -> Iterator[tuple[list[SelectedRow], bytes]]:
        """The rows in batches, each with its JSON list."""
        rows: list[SelectedRow] = []
        texts: list[bytes] = []
        size = 0
        for selected in self:
            text = self.dumped(selected)
            if rows and (len(rows) == BATCH_ROWS or size + len(text) > BATCH_BYTES):
                yield rows, b"[" + b",".join(texts) + b"]"
                rows, texts, size = [], [], 0
            rows.append(selected)
            texts.append(text)
            size += len(text)
        yield rows, b"[" + b",".join(texts) + b"]"


def _holds_bytes(value: object) -> bool:
    try:
        wire.dump(value)
    except wire.NotTextError:
        return True
    return False
