"""The score sheet: it does not say whose an answer is, no cell is a formula, what people write comes back as meant."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from job.errors import InputError
from job.report.scores import COLUMNS, ScoredPair, Scores, pairs_of, preferred, read_scores, scored, write_sheet
from job.store import DirectoryStore
from tests.flow.running import tunejob
from tests.reports import ANSWERS, RUN_ID, statistics

EQUAL = {"prompt": "same", "reference": None, "base": "yes", "trained": "yes"}


def put(output: Path, answers: list[dict[str, object]], run_id: str = RUN_ID) -> str:
    store = DirectoryStore(str(output))
    store.write("stats.json", json.dumps(statistics(run_id=run_id)).encode())
    store.write("spec.json", json.dumps({"evaluation": {"prompts": ["Turn on the lamp."]}}).encode())
    store.write("report/answers.json", json.dumps(answers).encode())
    return str(output)


@pytest.fixture
def output(tmp_path: Path) -> str:
    return put(tmp_path / "out", [*ANSWERS, EQUAL])


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))


def filled(pairs: list[ScoredPair], path: Path, give: Callable[[str], object], delimiter: str = ",") -> Path:
    """The sheet as somebody stores it who scores each answer by its text."""
    write_sheet(pairs, path)
    rows = rows_of(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter)
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {COLUMNS[5]: give(row["answer A"]), COLUMNS[6]: give(row["answer B"])})
    return path


def test_the_sheet_has_each_pair_that_differs_in_an_order_that_does_not_tell(output: str, tmp_path: Path) -> None:
    pairs = pairs_of(output)
    assert len(pairs) == len(ANSWERS), "equal answers are nothing to choose between"
    write_sheet(pairs, tmp_path / "sheet.csv")
    rows = rows_of(tmp_path / "sheet.csv")
    assert [row["question"] for row in rows[:2]] == ["Turn on the lamp.", "Question 0"], (
        "without the text of the template"
    )
    first = [row["answer A"] == pair.tuned for row, pair in zip(rows, pairs, strict=True)]
    assert 10 < sum(first) < 31
    assert pairs_of(output) == pairs, "the same run, the same order"
    other = pairs_of(put(tmp_path / "other", ANSWERS, "f" * 16))
    assert [pair.tuned_first for pair in other] != [pair.tuned_first for pair in pairs]
    assert all(pair.name.startswith("p") for pair in pairs), "no spreadsheet takes it for a number"
    assert "base" not in (tmp_path / "sheet.csv").read_text("utf-8-sig")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_scores_come_back_to_whom_they_were_given(output: str, tmp_path: Path, delimiter: str) -> None:
    pairs = pairs_of(output)
    sheet = filled(
        pairs,
        tmp_path / "sheet.csv",
        lambda text: 5 if text.startswith("answer") else "2.0" if text == "wrong" else 1,
        delimiter,
    )
    found = read_scores(pairs, sheet)
    assert (sorted(set(found.base)), found.left) == ([1], 0)
    assert (found.tuned.count(5), found.tuned.count(2), found.tuned.count(1)) == (30, 10, 1)
    said = scored(found)
    assert "41 pairs of answers are scored, from 1 to 5." in said
    assert "base      1.00      0     0     0     0    41" in said
    assert "tuned     4.17     30     0     0    10     1" in said
    assert "preferred 40 times, the base's 0, and 1 times neither" in said
    assert "this is hardly chance" in said


def test_the_probability_is_that_of_a_sign_test() -> None:
    assert preferred(Scores([1, 1, 5], [5, 5, 1], 0)) == (2, 1, 1.0)
    assert preferred(Scores([1] * 8 + [5, 3], [5] * 8 + [1, 3], 0)) == (8, 1, 2 * (1 + 9) / 2**9)
    assert preferred(Scores([3], [3], 0)) == (0, 0, 1.0)
    assert "may be chance" in scored(Scores([1, 1, 5], [5, 5, 1], 4))
    assert "3 pairs of answers are scored, from 1 to 5; 4 are not." in scored(Scores([1, 1, 5], [5, 5, 1], 4))


FORMULAS = ["=cmd|'/C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "  =1+1", "\t=1+1", "\r=1+1", "%0a=1", "|cmd"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_is_a_formula(formula: str, tmp_path: Path) -> None:
    answers = [{"prompt": formula, "reference": formula, "base": formula, "trained": f" {formula}"}]
    write_sheet(pairs_of(put(tmp_path / "out", answers)), tmp_path / "sheet.csv")
    (row,) = rows_of(tmp_path / "sheet.csv")
    cells = [row[name] for name in ("question", "expected", "answer A", "answer B")]
    assert not [cell for cell in cells if re.match(r"\s*[=+@|%-]|[\t\r]", cell)], cells
    assert all(cell.removeprefix("'").strip().endswith(formula[3:]) for cell in cells), "and nothing of it is lost"


def test_what_is_wrong_with_a_sheet_is_said_row_by_row(output: str, tmp_path: Path) -> None:
    pairs = pairs_of(output)
    sheet = filled(pairs, tmp_path / "sheet.csv", lambda text: 3)
    lines = sheet.read_text("utf-8").splitlines()
    rows = [line.rsplit(",", 2)[0] for line in lines]
    text = [
        lines[0],
        f"{rows[1]},{'6' * 5000},1",
        f"{rows[2]},,4",
        f"{rows[3]},good,4",
        lines[4],
        lines[4],
        lines[5].replace("p", "q", 1),
        f"{rows[6]},,",
    ]
    sheet.write_text("\n".join(text), "utf-8")
    with pytest.raises(InputError) as caught:
        read_scores(pairs, sheet)
    assert [(fault.where.rsplit(" ", 1)[1], fault.message, fault.found[:14]) for fault in caught.value.faults] == [
        ("2", "these are not two scores", "66666666666666"),
        ("3", "these are not two scores", "nothing and 4"),
        ("4", "these are not two scores", "good and 4"),
        ("6", "this pair is there twice", pairs[3].name),
        ("7", "this pair is not one of this run", f"'q{pairs[4].name[1:]}"[:14]),
    ]
    sheet.write_text("\n".join([lines[0], f"{rows[6]},,"]), "utf-8")
    with pytest.raises(InputError, match="nothing is scored"):
        read_scores(pairs, sheet)
    sheet.write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(InputError, match="no column 'pair'"):
        read_scores(pairs, sheet)
    sheet.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_scores(pairs, sheet)


def test_the_command_writes_reads_and_never_writes_over_scores(output: str, tmp_path: Path) -> None:
    sheet, scratch = tmp_path / "sheet.csv", tmp_path / "scratch"
    written = tunejob("report", output, "--score-sheet", str(sheet), scratch=scratch)
    assert (written.exit_code, written.stdout.startswith("41 pairs of answers are in ")) == (0, True), written.stdout
    again = tunejob("report", output, "--score-sheet", str(sheet), scratch=scratch)
    assert (again.exit_code, again.failure["message"]) == (11, "a file is there: it may have scores")
    sheet.unlink()
    filled(pairs_of(output), sheet, lambda text: 4)
    read = tunejob("report", output, "--scores", str(sheet), scratch=scratch)
    assert (read.exit_code, "0 times, the base's 0, and 41 times neither" in read.stdout) == (0, True), read.stdout
    none = tunejob("report", str(tmp_path), "--score-sheet", str(tmp_path / "b.csv"), scratch=scratch)
    assert none.exit_code == 11
    same = tunejob("report", put(tmp_path / "same", [EQUAL]), "--score-sheet", str(tmp_path / "c.csv"), scratch=scratch)
    assert (same.exit_code, same.failure["message"]) == (11, "no two answers differ: there is nothing to score")
