"""Rows of data files, one at a time: JSON Lines, JSON, CSV, Parquet and text, plain or gzipped.

Every reader is a stream, so memory does not grow with the file; only a JSON object that wraps its list of rows is
read whole. A text file holds one document a line (blank lines are skipped), as public corpora in this form do.
"""

from __future__ import annotations

import csv
import gzip
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from job.data.files import MAX_ROW_BYTES, DataFile
from job.data.read_json import read_json, read_jsonl

Row = dict[str, Any]


def count_rows(path: Path, pointer: str) -> int:
    """How many rows `path` holds. Raises `InputError` as `read_rows` does; JSON Lines and text are not parsed."""
    file = _data_file(path, pointer)
    if file.kind in ("jsonl", "txt"):
        return sum(1 for _ in file.lines())
    if file.kind == "parquet":
        with _parquet(file) as opened:
            return int(opened.metadata.num_rows)
    return sum(1 for _ in read_rows(path, pointer))


def read_rows(path: Path, pointer: str) -> Iterator[Row]:
    """The rows of `path` in order, each a dict of its columns.

    Raises `InputError` at `pointer` with the file and line for a file that is damaged, not UTF-8 or of no known kind.
    """
    file = _data_file(path, pointer)
    yield from READERS[file.kind](file)


def _data_file(path: Path, pointer: str) -> DataFile:
    file = DataFile(path, pointer)
    if file.kind not in READERS:
        expected = ".jsonl, .ndjson, .json, .csv, .parquet or .txt, each plain or with .gz"
        raise file.fault("not a kind of file the job reads", expected=expected)
    return file


def _read_txt(file: DataFile) -> Iterator[Row]:
    for number, line in file.lines():
        yield {"text": file.decode(line, number).rstrip("\r\n")}


def _read_csv(file: DataFile) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW_BYTES)
    with file.damage_named(), file.open_text() as opened:
        reader = csv.DictReader(opened, strict=True)
        try:
            names = reader.fieldnames or []
            if len(set(names)) < len(names) or "" in names:
                raise file.fault("the header needs a different name for each column", 1, ", ".join(names))
            for row in reader:
                if None in row or None in row.values():
                    raise file.fault(f"the row does not have {len(names)} fields as the header does", reader.line_num)
                yield row
        except csv.Error as error:
            raise file.fault(f"not CSV: {error}", reader.line_num) from None


@contextmanager
def _parquet(file: DataFile) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with file.damage_named(), _unzipped(file) as plain, pyarrow.parquet.ParquetFile(plain) as opened:
            yield opened
    except (pyarrow.ArrowException, OSError) as error:
        raise file.fault(f"not a whole Parquet file: {str(error).splitlines()[0]}") from None


@contextmanager
def _unzipped(file: DataFile) -> Iterator[IO[bytes]]:
    """Parquet is read from its end, so a gzipped one is unpacked to a temporary file first."""
    if not file.zipped:
        with file.open_bytes() as opened:
            yield opened
        return
    with tempfile.TemporaryFile() as plain:
        with gzip.open(file.path) as packed:
            shutil.copyfileobj(packed, plain)
        yield plain


def _read_parquet(file: DataFile) -> Iterator[Row]:
    with _parquet(file) as opened:
        for batch in opened.iter_batches(batch_size=256):
            yield from batch.to_pylist()


READERS: dict[str, Callable[[DataFile], Iterator[Row]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "txt": _read_txt,
}
