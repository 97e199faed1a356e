"""Every kind of file gives the rows that were written, streamed."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from job.data import read
from job.data.read import count_rows, read_rows
from job.errors import InputError
from tests.data_rows import Row, write_rows


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl.gz", "rows.parquet", "rows.json"])
def test_the_same_rows_in_any_kind_of_file(name: str, tmp_path: Path) -> None:
    rows = [
        {"instruction": 'Add, "please".', "input": "1\n2", "output": "3"},
        {"instruction": "Größe?", "input": "", "output": "zwölf"},
    ]
    path = tmp_path / name
    write(path, rows)
    assert list(read_rows(path, "")) == rows
    assert count_rows(path, "") == 2


def write(path: Path, rows: list[Row]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), "utf-8")
    else:
        write_rows(path, rows)


@pytest.mark.parametrize(
    "text",
    ['[{"text": "a"},\n {"text": "b"}]', '{"text": "a"}\n{"text": "b"}\n',
     '{"version": 1, "rows": [{"text": "a"}, {"text": "b"}]}',
     '{\n "rows": [\n  {"text": "a"},\n  {"text": "b"}\n ]\n}', '\ufeff[{"text": "a"}, {"text": "b"}]'],
)  # fmt: skip
def test_shapes_of_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, "utf-8")
    assert list(read_rows(path, "")) == [{"text": "a"}, {"text": "b"}]
    assert count_rows(path, "") == 2


def test_a_large_array_is_streamed_across_its_chunks(tmp_path: Path) -> None:
    rows = [{"text": f"{i} " + "x" * 3000 + " ]}, {"} for i in range(1500)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    assert path.stat().st_size > 4 << 20
    assert count_rows(path, "") == 1500
    assert list(read_rows(path, "")) == rows


@pytest.mark.parametrize(
    ("raw", "remarks"),
    [
        (b",q,a\n0,x,y\n1,z,w\n", ["its first column has no name and is left out"]),
        (b"\xef\xbb\xbfq;a\r\nx;y\r\nz;w\r\n", ["its columns are separated by ';'"]),
        (b"q\ta\nx\ty\nz\tw\n", ["its columns are separated by '\\t'"]),
        (b'"q";"a"\n"x";"y"\n\nz;w\n', ["its columns are separated by ';'"]),
        (b";q;a\n0;x;y\n1;z;w\n", ["its first column has no name and is left out", "its columns are separated by ';'"]),
        (b"q,a\nx,y\nz,w\n", []),
    ],
)
def test_csv_as_others_write_it(raw: bytes, remarks: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(raw)
    assert list(read_rows(path, "")) == [{"q": "x", "a": "y"}, {"q": "z", "a": "w"}]
    assert count_rows(path, "") == 2
    assert read.remarks(path, "") == [f"rows.csv: {remark}" for remark in remarks]


def test_a_column_alone_may_hold_any_sign(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text\na;b\tc|d\n")
    assert list(read_rows(path, "")) == [{"text": "a;b\tc|d"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", '{"q": NaN, "a": "x"}\n'),
        ("rows.json", '[{"q": NaN, "a": "x"}]'),
        ("rows.json", '{"rows": [{"q": NaN, "a": "x"}]}'),
    ],
)
def test_what_pandas_writes_for_a_missing_value_is_null(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert list(read_rows(path, "")) == [{"q": None, "a": "x"}]


PADDED = [
    {
        "tools": [{"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}],
        "args": '{"a": null}',
        "q": float("nan"),
    },
    {
        "tools": [{"name": "g", "parameters": {"properties": {"b": {"type": "integer", "minimum": 1}}}}],
        "args": None,
        "q": 1.0,
    },
]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "stream.arrow", "rows.arrow.gz"])
def test_what_was_absent_stays_absent(name: str, tmp_path: Path) -> None:
    """Arrow gives all structs of a column the same keys; a null inside JSON text is the author's and stays."""
    path = tmp_path / name
    write_arrow(path, pyarrow.Table.from_pylist(PADDED))
    assert list(read_rows(path, "")) == [PADDED[0] | {"q": None}, PADDED[1]]
    assert count_rows(path, "") == 2


def write_arrow(path: Path, table: pyarrow.Table) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return
    sink = pyarrow.BufferOutputStream()
    with (pyarrow.ipc.new_stream if "stream" in path.name else pyarrow.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    raw = sink.getvalue().to_pybytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def test_bytes_are_text_where_they_are_utf_8(tmp_path: Path) -> None:
    values = ["größer".encode(), b"\xff\xfe"]
    nested = pyarrow.list_(pyarrow.struct({"t": pyarrow.binary()}))
    columns = {
        "plain": pyarrow.array(values, pyarrow.binary()),
        "large": pyarrow.array(values, pyarrow.large_binary()),
        "parts": pyarrow.array([[{"t": value}] for value in values], nested),
    }
    path = tmp_path / "rows.parquet"
    write_arrow(path, pyarrow.table(columns))
    first, second = read_rows(path, "")
    assert first == {"plain": "größer", "large": "größer", "parts": [{"t": "größer"}]}
    assert second == {"plain": b"\xff\xfe", "large": b"\xff\xfe", "parts": [{"t": b"\xff\xfe"}]}


def test_maps_are_objects_whose_nulls_stay(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_arrow(
        path,
        pyarrow.table(
            {"m": pyarrow.array([[("a", None), ("b", "x")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))}
        ),
    )
    assert list(read_rows(path, "")) == [{"m": {"a": None, "b": "x"}}]


def test_an_arrow_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "stream.arrow"
    write_arrow(path, pyarrow.table({"text": ["a"] * 100}))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="not a whole Arrow file"):
        count_rows(path, "")


def test_dates_that_python_has_no_form_for_are_text(tmp_path: Path) -> None:
    """A column that nobody reads does not end a run, and of nanoseconds the text is the same without pandas."""
    microseconds, nothing = pyarrow.timestamp("us"), "1970-01-01 00:00:00.000002"
    columns = {
        "late": pyarrow.array([2, 2**62], microseconds),
        "mars": pyarrow.array([2, None], pyarrow.timestamp("us", tz="Mars/Phobos")),
        "day": pyarrow.array([1, 2**31 - 1], pyarrow.date32()),
    }
    path = tmp_path / "rows.arrow"
    write_arrow(path, pyarrow.table({"text": ["a", "b"], **columns}))
    assert list(read_rows(path, "")) == [
        {"text": "a", "late": nothing, "mars": nothing, "day": "1970-01-02"},
        {
            "text": "b",
            "late": f"<value out of range: {2**62}>",
            "mars": None,
            "day": f"<value out of range: {2**31 - 1}>",
        },
    ]
    write_arrow(path, pyarrow.table({"text": ["a"], "within": pyarrow.array([[2**62]], pyarrow.list_(microseconds))}))
    with pytest.raises(InputError, match="a value within a list or an object cannot be read: date value out of range"):
        list(read_rows(path, ""))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text\nÄ\n".encode("cp1252"), "Save it as UTF-8; spreadsheets call that CSV UTF-8"),
        ("text\nÄ\n".encode("utf-16"), "It is UTF-16. Save it as UTF-8"),
        (gzip.compress(b"text\na\n"), "It is gzip: let its name end in .gz"),
        (b"PK\x03\x04\xff\n", "It is a zip archive or an Excel file"),
        (b"PAR1\xff\n", "It is Parquet"),
    ],
)
def test_what_is_not_text_is_called_what_it_is(content: bytes, says: str, tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.jsonl"):
        (tmp_path / name).write_bytes(content if name == "rows.csv" else content.replace(b"text\n", b""))
        with pytest.raises(InputError) as caught:
            list(read_rows(tmp_path / name, ""))
        assert says in caught.value.faults[0].hint
