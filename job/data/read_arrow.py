"""Rows of Parquet and Arrow files as plain values.

Arrow gives every struct of a column the same keys and fills up with nulls: they are taken out again, so that what was
absent stays absent. A null that an author wrote inside JSON text is text here and stays. Bytes become text where they
are UTF-8, as writers without a text type leave it; NaN becomes null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from job.data.files import DataFile
from job.data.worker.json_text import LaxError, once

Row = dict[str, Any]
Convert = Callable[[Any], Any]

ROWS_AT_ONCE = 256
ARROW_FILE = b"ARROW1"  # how the form with an index begins; `save_to_disk` writes the one without


def read_parquet(file: DataFile) -> Iterator[Row]:
    with _parquet(file) as opened:
        yield from _rows(file, opened.schema_arrow, opened.iter_batches(batch_size=ROWS_AT_ONCE))


def count_parquet(file: DataFile) -> int:
    with _parquet(file) as opened:
        return int(opened.metadata.num_rows)


def read_arrow(file: DataFile) -> Iterator[Row]:
    with _arrow(file) as (schema, batches):
        yield from _rows(file, schema, batches)


def count_arrow(file: DataFile) -> int:
    with _arrow(file) as (_, batches):
        return sum(batch.num_rows for batch in batches)


@contextmanager
def _parquet(file: DataFile) -> Iterator[Any]:
    import pyarrow.parquet

    with _whole(file, "Parquet"), file.unzipped() as plain, pyarrow.parquet.ParquetFile(plain) as opened:
        yield opened


@contextmanager
def _arrow(file: DataFile) -> Iterator[tuple[Any, Iterable[Any]]]:
    import pyarrow as pa

    with _whole(file, "Arrow"), file.unzipped() as plain:
        begins = plain.read(len(ARROW_FILE))
        plain.seek(0)
        opened = pa.ipc.open_file(plain) if begins == ARROW_FILE else pa.ipc.open_stream(plain)
        batches = map(opened.get_batch, range(opened.num_record_batches)) if begins == ARROW_FILE else opened
        yield opened.schema, batches


@contextmanager
def _whole(file: DataFile, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        with file.damage_named():
            yield
    except (pyarrow.ArrowException, OSError) as error:
        raise file.fault(f"not a whole {kind} file: {str(error).splitlines()[0]}") from None


def _rows(file: DataFile, schema: Any, batches: Iterable[Any]) -> Iterator[Row]:
    if twice := _twice(schema, "column") or next(filter(None, (_twice_within(field.type) for field in schema)), ""):
        raise file.fault(twice, expected="a different name for each")
    converts = {field.name: convert for field in schema if (convert := _convert(field.type))}
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            for row in _plain(batch.slice(start, ROWS_AT_ONCE), file):
                number += 1
                try:
                    yield row | {name: convert(row[name]) for name, convert in converts.items()}
                except LaxError as error:
                    raise file.fault(f"row {number}: {error}") from None


def _plain(batch: Any, file: DataFile) -> list[Row]:
    """Rows of Python's own values; where it has none for a date, such as one after the year 9999, of an unknown time
    zone or, without pandas, of nanoseconds, dates are text.
    """
    import pyarrow as pa
    from pyarrow.types import is_date, is_timestamp

    def text(column: Any) -> Any:
        if is_timestamp(column.type):
            column = column.cast(pa.timestamp(column.type.unit))  # as it is in UTC
        return column.cast(pa.string()) if is_timestamp(column.type) or is_date(column.type) else column

    def attempt(rows: Any) -> list[Row] | Exception:
        try:
            found: list[Row] = rows.to_pylist()
        except UnicodeDecodeError:
            raise
        except (ValueError, OverflowError, pa.ArrowException) as error:
            return error
        return found

    found = attempt(batch)
    if isinstance(found, Exception):
        found = attempt(pa.RecordBatch.from_arrays(list(map(text, batch.columns)), batch.schema.names))
    if isinstance(found, Exception):
        raise file.fault(f"a value within a list or an object cannot be read: {found}")
    return found


def _twice(fields: Iterable[Any], what: str) -> str:
    """Why names do not distinguish the fields; empty where they can."""
    names = Counter(field.name for field in fields)
    return next((f"the {what} {name[:80]!a} is there twice" for name, count in names.items() if count > 1), "")


def _twice_within(kind: Any) -> str:
    """The same of structs at any depth."""
    import pyarrow.types as types

    inner = [kind.field(number) for number in range(kind.num_fields)] if types.is_nested(kind) else []
    found = _twice(inner, "struct's key") if types.is_struct(kind) else ""
    return found or next(filter(None, (_twice_within(field.type) for field in inner)), "")


def _convert(kind: Any) -> Convert | None:
    """How a value of this Arrow type becomes a plain one; None where it is one already."""
    import pyarrow.types as types

    def is_any(*names: str) -> bool:
        return any(getattr(types, f"is_{name}")(kind) for name in names)

    if hasattr(kind, "storage_type"):  # an extension
        return _convert(kind.storage_type)
    if is_any("dictionary", "run_end_encoded"):
        return _convert(kind.value_type)
    if is_any("struct"):
        return _of_struct({field.name: _convert(field.type) for field in kind})
    if is_any("map"):
        return _of_map(_convert(kind.item_type))
    if is_any("list", "large_list", "fixed_size_list", "list_view", "large_list_view"):
        item = _convert(kind.value_type)
        return None if item is None else lambda value: None if value is None else [item(part) for part in value]
    if is_any("binary", "large_binary", "fixed_size_binary", "binary_view"):
        return _text
    if is_any("floating"):
        return lambda value: None if value != value else value  # NaN is not itself
    return None


def _of_struct(fields: dict[str, Convert | None]) -> Convert:
    def convert(value: Any) -> Any:
        if value is None:
            return None
        plain = ((name, fields[name](part) if fields[name] else part) for name, part in value.items())  # type: ignore[misc]
        return {name: part for name, part in plain if part is not None}

    return convert


def _of_map(item: Convert | None) -> Convert:
    """Raises `LaxError` for a key that is given twice."""
    return lambda value: None if value is None else once([(key, item(part) if item else part) for key, part in value])


def _text(value: Any) -> Any:
    """The text of UTF-8 bytes; other bytes as they are, such as a picture's."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
