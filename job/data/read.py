"""Rows of data files, one at a time: JSON Lines, JSON, CSV, Parquet, Arrow and text, plain or gzipped.

Every reader is a stream, so memory does not grow with the file; only a JSON object that wraps its list of rows is
read whole. A text file holds one document a line (blank lines are skipped), as public corpora in this form do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from job.data.files import DataFile
from job.data.read_arrow import count_arrow, count_parquet, read_arrow, read_parquet
from job.data.read_csv import csv_remarks, read_csv
from job.data.read_json import is_read_whole, json_remarks, read_json, read_jsonl

Row = dict[str, Any]

GLANCE_BYTES = 8 << 20  # are read and unpacked in no time


def count_rows(path: Path, pointer: str) -> int:
    """How many rows `path` holds. Raises `InputError` as `read_rows` does; JSON Lines and text are not parsed."""
    file = _data_file(path, pointer)
    if file.kind in ("jsonl", "txt"):
        return sum(1 for _ in file.lines())
    if file.kind in COUNTERS:
        return COUNTERS[file.kind](file)
    return sum(1 for _ in read_rows(path, pointer))


def remarks(path: Path, pointer: str) -> list[str]:
    """What was taken for granted in reading `path`, for people."""
    file = _data_file(path, pointer)
    found = REMARKS[file.kind](file) if file.kind in REMARKS else []
    return [f"{file.name}: {remark}" for remark in found]


def is_all_text(path: Path) -> bool:
    """Whether every value of such a file is text, so that nothing but its words says that a value is missing."""
    return DataFile(path, "").kind == "csv"


def read_rows(path: Path, pointer: str) -> Iterator[Row]:
    """The rows of `path` in order, each a dict of its columns.

    Raises `InputError` at `pointer` with the file and line for a file that is damaged, not UTF-8 or of no known kind.
    """
    return (row for _, row in read_numbered(path, pointer))


def read_numbered(path: Path, pointer: str) -> Iterator[tuple[int, Row]]:
    """The same, each with the number that an editor shows: of its line where rows are lines, else its own, from 1."""
    file = _data_file(path, pointer)
    yield from LINED[file.kind](file) if file.kind in LINED else enumerate(READERS[file.kind](file), 1)


def place(path: Path, number: int) -> str:
    """A row in words, by its number of `read_numbered`. A `.csv` has a header, and cells of several lines."""
    return f"{path.name} {'line' if is_all_text(path) else 'row'} {number}"


def why_not_at_a_glance(path: Path, pointer: str) -> str:
    """Why the first row of `path` takes more than a look at its beginning; empty where not. Raises as `read_rows`."""
    file = _data_file(path, pointer)
    is_arrow = file.kind in COUNTERS
    if is_arrow and find_spec("pyarrow") is None:
        return "this installation has no pyarrow"
    whole = (is_arrow and file.zipped) or (file.kind == "json" and is_read_whole(file))
    return "it would have to be read whole" if whole and path.stat().st_size > GLANCE_BYTES else ""


def _data_file(path: Path, pointer: str) -> DataFile:
    file = DataFile(path, pointer)
    if file.kind not in LINED and file.kind not in READERS:
        expected = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow or .txt, each plain or with .gz"
        raise file.fault("not a kind of file the job reads", expected=expected)
    return file


def _read_txt(file: DataFile) -> Iterator[tuple[int, Row]]:
    for number, line in file.lines():
        yield number, {"text": file.decode(line, number).rstrip("\r\n")}


LINED: dict[str, Callable[[DataFile], Iterator[tuple[int, Row]]]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "txt": _read_txt,
}
READERS: dict[str, Callable[[DataFile], Iterator[Row]]] = {
    "json": read_json,
    "parquet": read_parquet,
    "arrow": read_arrow,
}
COUNTERS: dict[str, Callable[[DataFile], int]] = {"parquet": count_parquet, "arrow": count_arrow}
REMARKS: dict[str, Callable[[DataFile], list[str]]] = {"csv": csv_remarks, "json": json_remarks}
