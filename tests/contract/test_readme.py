"""README's tables are those that the schema and the classes give. `python -m job.reference` writes them."""

from __future__ import annotations

import pytest

from job.errors import TREE
from job.reference import README, TABLES, exit_code_table, replace_block, spec_table
from tests.contract.test_schema import NAMED


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_readme_is_current(name: str) -> None:
    text = README.read_text("utf-8")
    assert f"<!-- {name} -->" in text, f"README.md has no block <!-- {name} --> … <!-- /{name} -->"
    assert replace_block(text, name, TABLES[name]()) == text, "README.md is behind: run python -m job.reference"


def test_the_spec_table_has_a_row_for_every_key() -> None:
    rows = spec_table().splitlines()[2:]
    keys = [row.split("`")[1] for row in rows]
    wanted = {p.removeprefix("/").replace("/0", "[]").replace("/", ".") for p in NAMED if not p.startswith("/data/held_out/sources/0")}
    assert set(keys) == wanted
    assert len(set(keys)) == len(keys)
    assert all(row.count(" | ") == 3 for row in rows)
    assert '| `model.precision` | `"4bit"`, `"8bit"`, `"16bit"`, `"full"` | `"4bit"` |' in spec_table()
    assert "| `lora.r` | integer ≥ 1, ≤ 1024 | `16` |" in spec_table()


def test_the_exit_codes_are_all_there() -> None:
    rows = exit_code_table().splitlines()[2:]
    assert [int(row.split("|")[1]) for row in rows] == [0, *(kind.exit_code for kind in TREE)]
    assert [row.split("|")[-2].strip() for row in rows] == ["–", "Count", *["FailJob"] * 5, "Count", "Count", "Ignore"]


def test_a_missing_block_is_told() -> None:
    with pytest.raises(ValueError, match=r"README\.md has no block <!-- spec table -->"):
        replace_block("nothing here", "spec table", "x")
    assert replace_block("a <!-- x --> old <!-- /x --> b", "x", "new") == "a <!-- x -->\nnew\n<!-- /x --> b"
