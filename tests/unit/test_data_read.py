"""Every kind of file gives the rows that were written, streamed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from job.data.read import count_rows, read_rows
from tests.data_rows import Row, write_rows


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl.gz", "rows.parquet", "rows.json"])
def test_the_same_rows_in_any_kind_of_file(name: str, tmp_path: Path) -> None:
    rows = [{"instruction": 'Add, "please".', "input": "1\n2", "output": "3"}, {"instruction": "Größe?", "input": "", "output": "zwölf"}]
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
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), "utf-8")
    else:
        write_rows(path, rows)


@pytest.mark.parametrize(
    "text",
    ['[{"text": "a"},\n {"text": "b"}]', '{"text": "a"}\n{"text": "b"}\n', '{"version": 1, "rows": [{"text": "a"}, {"text": "b"}]}',
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
