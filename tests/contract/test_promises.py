"""tests/README.md names tests that exist: a promise whose test was renamed or removed is not a promise."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = ROOT / "tests" / "README.md"
TEXT = PROMISES.read_text("utf-8")
OPEN = "## What does not hold, or was never shown"
IDS = {
    f"{letter}{number}"
    for letter, count in (("R", 13), ("A", 9), ("S", 15), ("C", 4))
    for number in range(1, count + 1)
}
# What is written as code and is a place in the repository: has a slash and no other sign, or is a file of the root.
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)+/?|[A-Z]\w+\.md|Makefile|Dockerfile")


def rows(part: str) -> list[list[str]]:
    """Cells of each row of the tables in a part, without their heads."""
    lines = [line for line in part.splitlines() if line.startswith("|") and not line.startswith(("| id |", "|---"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def named_tests(text: str) -> list[str]:
    """Each `path::name`, without the brackets of a parametrised case."""
    return [name.partition("[")[0] for name in code(text) if "::" in name]


BEFORE, _, SINCE = TEXT.partition(f"\n{OPEN}\n")
NOT_HELD, _, REST = SINCE.partition("\n## ")
PROMISED = rows(REST)
NOT_PROMISED = rows(NOT_HELD)
NAMED = sorted(set(named_tests(TEXT)))
PATHS = sorted({name for name in code(TEXT) if PATH.fullmatch(name)})


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


def test_each_named_test_exists() -> None:
    found = [(path, function) for path, _, function in (name.partition("::") for name in NAMED)]
    assert {path for path, _ in found if not (ROOT / path).is_file()} == set(), "files that are not there"
    assert [name for name in found if not name[1].startswith("test_") or name[1] not in functions(ROOT / name[0])] == []


def test_each_named_place_exists() -> None:
    assert [path for path in PATHS if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("row", PROMISED, ids=lambda row: row[0])
def test_a_promise_has_its_tests_and_a_figure(row: list[str]) -> None:
    assert len(row) == 4, row
    _, promise, held_by, figure = row
    assert promise
    assert figure
    assert named_tests(held_by), f"{row[0]} names no test that holds it"
    assert named_tests(held_by) == code(held_by), f"{row[0]}: only tests hold a promise"


@pytest.mark.parametrize("row", NOT_PROMISED, ids=lambda row: f"{row[0]}: {row[1][:40]}")
def test_what_is_not_promised_has_its_reason(row: list[str]) -> None:
    assert len(row) == 4, row
    assert all(row)


def test_the_page_begins_with_what_does_not_hold() -> None:
    assert NOT_PROMISED
    assert "\n## " not in BEFORE
    assert len(BEFORE.split("\n\n")) == 2, "a title and one sentence"


def test_each_promise_is_there_once() -> None:
    kept = [row[0] for row in PROMISED]
    left = {name for row in NOT_PROMISED for name in row[0].split(", ")}
    assert len(kept) == len(set(kept))
    assert set(kept) <= IDS
    assert left <= IDS
    assert set(kept) | left == IDS
