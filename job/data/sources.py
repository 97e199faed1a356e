"""Selected rows of the sources, in batches for the workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from job.data.columns import ColumnUse
from job.data.fit import way_out
from job.data.read import Row, count_rows, is_all_text, place, read_numbered, remarks
from job.data.select import row_range
from job.data.worker import wire
from job.data.worker.messages import names
from job.data.worker.shape import ALPACA_INPUT, FORMATS, Columns, is_chat
from job.errors import InputError
from job.source import FetchedSource
from job.spec import SourceSpec

BATCH_ROWS = 256
BATCH_BYTES = 512 << 10


@dataclass(frozen=True)
class SelectedRow:
    """A row with its place: running number among those that are read of its source, and words for messages. `all_text`:
    its file knows no other values.
    """

    number: int
    place: str
    row: Row
    all_text: bool


class Selection:
    """The rows of one source that its split slice and limit leave."""

    def __init__(self, source: FetchedSource) -> None:
        self.source = source
        self._counts = [count_rows(path, self.pointer) for path in source.files]
        self._range = row_range(source.spec, sum(self._counts))
        self._sampled: frozenset[int] | None = None
        self._columns = ColumnUse(source.spec, self.pointer)
        if not self._range:
            rows = sum(self._counts)
            hint = (
                f"{source.spec.split} leaves none of them"
                if rows
                else "The files are empty, or have nothing but a header"
            )
            raise InputError(
                "no rows",
                where=self.pointer,
                found=f"{rows} rows in {len(source.files)} files",
                expected="at least 1 row",
                hint=hint,
            )

    @property
    def pointer(self) -> str:
        return f"{self.source.pointer}/source"

    def __len__(self) -> int:
        return len(self._range) if self._sampled is None else len(self._sampled)

    def sample(self, numbers: frozenset[int]) -> None:
        """Leaves only the rows that have these places, counted from 0, among the selected ones."""
        self._sampled = numbers

    def __iter__(self) -> Iterator[SelectedRow]:
        before = yielded = 0
        for path, count in zip(self.source.files, self._counts, strict=True):
            if before < self._range.stop and before + count > self._range.start:
                all_text = is_all_text(path)
                for number, (shown, row) in enumerate(read_numbered(path, self.pointer), before):
                    if number >= self._range.stop:
                        return
                    selected = number - self._range.start
                    if number in self._range and (self._sampled is None or selected in self._sampled):
                        row = self._columns.settled(row) if all_text else row
                        yield SelectedRow(yielded, place(path, shown), row, all_text)
                        yielded += 1
            before += count

    def check_columns(self) -> bool:
        """Raises `InputError` if the first row lacks a needed column. Returns whether rows are conversations."""
        return check_columns(self.source.spec, self.source.pointer, next(iter(self)).row)

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
        """What was taken for granted in reading the files."""
        return [remark for path in self.source.files for remark in remarks(path, self.pointer)]

    def column_notes(self) -> list[str]:
        """What the rows that came in `batches` have in columns that is not read as it is written."""
        return self._columns.notes()

    def dumped(self, selected: SelectedRow) -> bytes:
        """The row as JSON. What has no place in it is left out, or an `InputError` where the format reads it: bytes
        that are not text, and NaN among numbers.
        """
        try:
            return wire.dump(selected.row)
        except wire.NotJsonError:
            odd = {name: words for name, value in selected.row.items() if (words := _not_json(value))}
        for name in sorted(self._columns.used & odd.keys()):
            raise InputError(f"{selected.place}: {name} {odd[name]}", where=self.pointer)
        return wire.dump({name: value for name, value in selected.row.items() if name not in odd})

    def batches(self) -> Iterator[tuple[list[SelectedRow], bytes]]:
        """The rows in batches, each with its JSON list."""
        rows: list[SelectedRow] = []
        texts: list[bytes] = []
        size = 0
        for selected in self:
            self._columns.see(selected.row, selected.all_text)
            text = self.dumped(selected)
            if rows and (len(rows) == BATCH_ROWS or size + len(text) > BATCH_BYTES):
                yield rows, b"[" + b",".join(texts) + b"]"
                rows, texts, size = [], [], 0
            rows.append(selected)
            texts.append(text)
            size += len(text)
        yield rows, b"[" + b",".join(texts) + b"]"


def check_columns(spec: SourceSpec, pointer: str, row: Row) -> bool:
    """Whether rows are conversations. Raises `InputError` if the first, `row`, lacks a needed column."""
    needed = [spec.columns.get(name, name) for name in FORMATS[spec.format].required]
    missing = [name for name in [*needed, *spec.columns.values()] if name not in row]
    if missing:
        expected = ", ".join(dict.fromkeys([*needed, *spec.columns.values()]))
        raise InputError(
            f"format {spec.format} misses columns",
            where=f"{pointer}/columns",
            found=names(row),
            expected=expected,
            hint=way_out(row, spec),
        )
    return is_chat(spec.format, row, Columns(spec.columns))


def _not_json(value: object) -> str:
    """Why a value has no form in JSON; empty where it has one."""
    try:
        wire.dump(value)
    except wire.NotJsonError as error:
        return str(error)
    return ""
