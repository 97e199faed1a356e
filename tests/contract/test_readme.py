"""The tables of the READMEs are those of schema and classes (`python -m job.reference` writes them).

README.md stays what a newcomer reads: short, with a spec that is valid.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from job.errors import TREE
from job.gguf.types import TYPES
from job.opinions import JUDGED
from job.reference import ROOT, TABLES, exit_code_table, gguf_table, replace_block, spec_table
from job.report.kept import ANSWERS, EXPORTS, LOSSES, SAMPLES
from job.spec import parse_spec
from tests.contract.test_schema import NAMED

README = ROOT / "README.md"
LONGEST = 12_000


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_readme_is_current(name: str) -> None:
    document, table = TABLES[name]
    text = (ROOT / document).read_text("utf-8")
    assert f"<!-- {name} -->" in text, f"{document} has no block <!-- {name} --> … <!-- /{name} -->"
    assert replace_block(text, name, table(), document) == text, (
        f"{document} is out of date: run python -m job.reference"
    )


def test_every_table_is_kept_where_it_belongs() -> None:
    assert {name: document for name, (document, _) in TABLES.items()} == {
        "exit codes": "README.md",
        "spec table": "schemas/README.md",
        "metrics": "job/stages.md",
        "gguf types": "job/export/README.md",
        "common jobs": "schemas/guide.md",
    }


def test_the_spec_table_has_a_row_for_every_key() -> None:
    rows = spec_table().splitlines()[2:]
    keys = [row.split("`")[1] for row in rows]
    wanted = {p.removeprefix("/").replace("/0", "[]").replace("/", ".") for p in NAMED if "/sources/0" not in p}
    assert set(keys) == wanted
    assert len(set(keys)) == len(keys)
    assert all(row.count(" | ") == 3 for row in rows)
    assert '| `model.precision` | `"4bit"`, `"8bit"`, `"16bit"`, `"full"` | `"4bit"` |' in spec_table()
    assert "| `lora.r` | integer ≥ 1, ≤ 1024 | `16` |" in spec_table()


def test_the_gguf_types_are_all_there() -> None:
    assert [row.split("`")[1] for row in gguf_table().splitlines()[2:]] == list(TYPES)


def test_the_exit_codes_are_all_there() -> None:
    rows = exit_code_table().splitlines()[2:]
    assert [int(row.split("|")[1]) for row in rows] == [0, *(kind.exit_code for kind in TREE)]
    assert [row.split("|")[-2].strip() for row in rows] == ["–", "Count", *["FailJob"] * 5, "Count", "Count", "Ignore"]


def test_a_missing_block_is_reported() -> None:
    with pytest.raises(ValueError, match=r"schemas/README\.md has no block <!-- spec table -->"):
        replace_block("nothing here", "spec table", "x", "schemas/README.md")
    assert (
        replace_block("a <!-- x --> old <!-- /x --> b", "x", "new", "README.md") == "a <!-- x -->\nnew\n<!-- /x --> b"
    )


def test_it_is_short() -> None:
    assert len(README.read_bytes()) <= LONGEST


def test_what_is_at_output_has_each_small_file() -> None:
    """tests/flow/test_demo.py holds that a run leaves no others."""
    tree = README.read_text("utf-8").partition("## What is at `output`")[2].partition("\n## ")[0]
    pages = ("report.html", "summary.md", "samples.md", "gates.md", "gates.junit.xml", "probe.safetensors")
    for name in (*pages, *(Path(key).name for key in (LOSSES, ANSWERS, SAMPLES, EXPORTS, JUDGED))):
        assert f" {name}" in tree, name


def test_its_row_and_its_spec_are_valid() -> None:
    row, spec = re.findall(r"```json\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert [turn["role"] for turn in json.loads(row)["messages"]] == ["user", "assistant"]
    asked = parse_spec(spec.encode())
    assert asked.data.train[0].format == "messages"
    assert f"tunejob verify {asked.output.uri} " in README.read_text("utf-8")
    assert f"tunejob schema -o {json.loads(spec)['$schema']}`" in README.read_text("utf-8"), "works outside a clone"
