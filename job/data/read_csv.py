"""Rows of CSV files: separated by commas, or by what the header shows; an index that pandas wrote is left out."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from job.data.files import MAX_ROW_BYTES, DataFile
from job.data.worker.messages import names as shown

Row = dict[str, Any]

COMMA, TAB = ",", "\t"
OTHERS = (";", TAB, "|")


@dataclass(frozen=True)
class CsvHeader:
    """`has_index`: the first column has no name, as when pandas writes its index."""

    names: list[str]
    separator: str

    @property
    def has_index(self) -> bool:
        return len(self.names) > 1 and self.names[0] == ""


def read_csv(file: DataFile) -> Iterator[tuple[int, Row]]:
    """Each row with the line that it begins in."""
    header = _header(file)
    with file.damage_named(), file.open_text() as opened:
        records = _records(file, opened, header.separator, strict=True)
        next(records, None)
        for line, fields in records:
            row: Row = dict(zip(header.names, fields, strict=True))
            if header.has_index:
                del row[""]
            yield line, row


def csv_remarks(file: DataFile) -> list[str]:
    """What was taken for granted about the file's form."""
    header = _header(file)
    remarks = ["its first column has no name and is left out"] if header.has_index else []
    if header.separator != _usual(file):
        remarks.append(f"its columns are separated by {header.separator!r}")
    return remarks


def _usual(file: DataFile) -> str:
    return TAB if file.suffix == "tsv" else COMMA


def _header(file: DataFile) -> CsvHeader:
    header = _first(file, _usual(file))
    if len(header.names) == 1:
        header = max(header, *(_first(file, separator) for separator in OTHERS), key=lambda found: len(found.names))
    if len(header.names) <= 2 and header.names[:1] == ["sep="]:
        written = ascii(f"sep={header.separator}")
        raise file.fault("Excel's line about the separator is not a header", 1, written, "the columns' names in line 1")
    names = header.names[1:] if header.has_index else header.names
    if len(set(names)) < len(names) or "" in names:
        raise file.fault("the header needs a different name for each column", 1, shown(header.names))
    return header


def _first(file: DataFile, separator: str) -> CsvHeader:
    with file.damage_named(), file.open_text() as opened:
        return CsvHeader(next(_records(file, opened, separator, strict=False), (1, []))[1], separator)


def _records(file: DataFile, opened: IO[str], separator: str, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Each record's first line, and as many fields as the first has; `strict` refuses what comes after a quote."""
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _Lines(file, opened)
    reader = csv.reader(lines, delimiter=separator, strict=strict)
    count, after = 0, 1
    try:
        for fields in reader:
            line, after = after, reader.line_num + 1
            if not fields:
                continue
            lines.characters = 0
            count = count or len(fields)
            if len(fields) != count:
                message, found = f"the row does not have {count} fields as the header does", str(len(fields))
                hint = f"A text with {separator!r} in it needs quotes around it" if len(fields) > count else ""
                raise file.fault(message, line, found, hint=hint)
            yield line, fields
    except csv.Error as error:
        hint = "A quote inside a text is written twice, and the text has quotes around it"
        raise file.fault(f"not CSV: {error}", reader.line_num, hint=hint) from None


class _Lines:
    """Lines with their ends; those of one record hold no more characters together than a row may."""

    def __init__(self, file: DataFile, opened: IO[str]) -> None:
        self._file = file
        self._opened = opened
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        number = 0
        while line := self._opened.readline(MAX_ROW_BYTES + 1):
            number += 1
            self.characters += len(line)
            if self.characters > MAX_ROW_BYTES:
                raise self._file.fault("the row is too long", number, f"more than {MAX_ROW_BYTES} characters")
            yield line
