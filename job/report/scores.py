"""Answers scored by people who do not know whose they are: the sheet, and what the scores say.

Which of the two answers is first follows from the run and the question, so the sheet need not say it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from job.errors import Fault, InputError
from job.host.streams import harmless
from job.ledger.evidence import STATS, json_object, require_result
from job.ledger.manifest import SPEC
from job.report.kept import ANSWERS, Json, question, surroundings
from job.report.markdown import figure
from job.store import Store, open_store
from job.store.base import is_there

PAIR, QUESTION, EXPECTED, FIRST, SECOND = "pair", "question", "expected", "answer A", "answer B"
SCORE_FIRST, SCORE_SECOND = "score A (1 to 5)", "score B (1 to 5)"
COLUMNS = (PAIR, QUESTION, EXPECTED, FIRST, SECOND, SCORE_FIRST, SCORE_SECOND)
LOWEST, HIGHEST = 1, 5
FORMULA = re.compile(r"\s*[=+\-@|%]|[\t\r\n]")  # what a spreadsheet may take for more than text, at the start of a cell
LONGEST = 8000  # characters of a cell: a spreadsheet takes 32,767
ENDS = ".0", ",0"  # as spreadsheets write whole numbers
BY_CHANCE = 0.05


@dataclass(frozen=True)
class ScoredPair:
    """Two answers that differ. `tuned_first`: whether the tuned model's is answer A."""

    name: str
    question: str
    expected: str
    base: str
    tuned: str
    tuned_first: bool


@dataclass(frozen=True)
class Scores:
    """What people gave, by pair: the base's and the tuned model's. `left`: pairs that nobody scored."""

    base: Sequence[int]
    tuned: Sequence[int]
    left: int


def pairs_of(output: str) -> list[ScoredPair]:
    """The answers of a run that differ. Raises `InputError` where no run has stored any, or all are equal."""
    store = open_store(output)
    require_result(store, ANSWERS)
    require_result(store, STATS)
    run_id = str(json_object(store.read(STATS)).get("run_id", ""))
    try:
        rows = json.loads(store.read(ANSWERS))
        around = surroundings(rows, _prompts(store))
        found = [_pair(run_id, number, row, around) for number, row in enumerate(rows) if row["base"] != row["trained"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        place = f"{store.uri}/{ANSWERS}"
        raise InputError("these are not the answers of a run", where=place, found=ascii(str(error))) from error
    if not found:
        raise InputError("no two answers differ: there is nothing to score", where=f"{store.uri}/{ANSWERS}")
    return found


def _prompts(store: Store) -> list[str]:
    """The spec's, which show what the chat template writes around a question."""
    spec = json_object(store.read(SPEC)) if is_there(store, SPEC) else {}
    evaluation = spec.get("evaluation")
    prompts = evaluation.get("prompts", []) if isinstance(evaluation, dict) else []
    return [str(each["prompt"] if isinstance(each, dict) else each) for each in prompts]


def _pair(run_id: str, number: int, row: Json, around: tuple[str, str]) -> ScoredPair:
    base, tuned = str(row["base"]), str(row["trained"])
    asked = json.dumps([run_id, number, row["prompt"], base, tuned])
    name, order = (hashlib.sha256(f"{what} {asked}".encode()).hexdigest() for what in ("pair", "order"))
    expected = str(row.get("reference") or "")
    return ScoredPair(f"p{name[:12]}", question(row, around), expected, base, tuned, int(order[0], 16) % 2 == 1)


def write_sheet(pairs: Sequence[ScoredPair], path: Path) -> None:
    """A csv for any spreadsheet. Raises `InputError` where a file is there: it may have somebody's scores."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for pair in pairs:
        answers = (pair.tuned, pair.base) if pair.tuned_first else (pair.base, pair.tuned)
        writer.writerow([pair.name, *(cell(value) for value in (pair.question, pair.expected, *answers)), "", ""])
    try:
        with path.open("x", encoding="utf-8-sig", newline="") as file:
            file.write(text.getvalue())
    except FileExistsError:
        raise InputError(
            "a file is there: it may have scores", where="--score-sheet", found=str(path), hint="Name another"
        ) from None
    except OSError as error:
        words = f"the sheet cannot be written: {error.strerror}"
        raise InputError(words, where="--score-sheet", found=str(path)) from None


def cell(value: str) -> str:
    """A text that no spreadsheet computes: an apostrophe is put before what would be a formula."""
    left = len(value) - LONGEST
    whole = value if left <= 0 else f"{value[:LONGEST]}… ({left:,} more characters)"
    shown = harmless(whole.replace("\r\n", "\n")).encode("utf-8", "replace").decode()
    return f"'{shown}" if FORMULA.match(shown) else shown


def read_scores(pairs: Sequence[ScoredPair], path: Path) -> Scores:
    """What people wrote into the sheet of these pairs. Raises `InputError` naming every row that is not of this run, or
    has not two whole numbers from 1 to 5; a row without any is not scored.
    """
    known = {pair.name: pair for pair in pairs}
    given: dict[str, tuple[int, int]] = {}
    faults: list[Fault] = []
    seen: set[str] = set()
    for line, row in _rows(path):
        name = (row.get(PAIR) or "").strip()
        written = [(row.get(column) or "").strip() for column in (SCORE_FIRST, SCORE_SECOND)]
        first, second = map(_score, written)
        wrong = _wrong(name, known, seen, written)
        seen.add(name)
        if wrong:
            faults.append(replace(wrong, where=f"{path}, line {line}"))
        elif first is not None and second is not None:
            given[name] = (second, first) if known[name].tuned_first else (first, second)
    if faults:
        raise InputError(*faults)
    if not given:
        expected = f"numbers under {SCORE_FIRST!r} and {SCORE_SECOND!r}"
        raise InputError("nothing is scored", where=str(path), expected=expected)
    return Scores([base for base, _ in given.values()], [tuned for _, tuned in given.values()], len(pairs) - len(given))


def _wrong(name: str, known: Mapping[str, ScoredPair], seen: set[str], written: Sequence[str]) -> Fault | None:
    """What is wrong with a row."""
    if name not in known:
        hint = "Name the output that the sheet was made of"
        return Fault("this pair is not one of this run", found=repr(name[:40]), hint=hint)
    if name in seen:
        return Fault("this pair is there twice", found=name)
    if any(written) and None in map(_score, written):
        found = " and ".join(text[:20] or "nothing" for text in written)
        expected = f"whole numbers from {LOWEST} to {HIGHEST}, or nothing"
        return Fault("these are not two scores", found=found, expected=expected)
    return None


def _score(text: str) -> int | None:
    whole = text[:-2] if text.endswith(ENDS) else text
    return int(whole) if whole in map(str, range(LOWEST, HIGHEST + 1)) else None


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str | None]]]:
    """Each row with its line, of a sheet that a spreadsheet has stored in its own way: commas, semicolons or tabs."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        words = f"the scores cannot be read: {error.strerror}"
        raise InputError(words, where="--scores", found=str(path)) from None
    except UnicodeDecodeError:
        hint = "Store the sheet as CSV UTF-8"
        raise InputError("this is not UTF-8", where=str(path), hint=hint) from None
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=lambda sign: head.count(f'"{sign}"') or head.count(sign))
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        absent = [name for name in (PAIR, SCORE_FIRST, SCORE_SECOND) if name not in (reader.fieldnames or ())]
        if absent:
            raise InputError("this is not a sheet of scores", where=str(path), found=f"no column {absent[0]!r}")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"this is not a csv: {error}", where=f"{path}, line {reader.line_num}") from None


def scored(scores: Scores) -> str:
    """What the scores say, for people."""
    return "\n".join(_lines(scores)) + "\n"


def _lines(scores: Scores) -> Iterator[str]:
    count = len(scores.base)
    left = f"; {scores.left} are not" if scores.left else ""
    yield f"{count} pairs of answers are scored, from {LOWEST} to {HIGHEST}{left}."
    yield ""
    steps = range(HIGHEST, LOWEST - 1, -1)
    yield f"{'':<8}{'mean':>6}   {'  '.join(f'{step:>4}' for step in steps)}"
    for name, given in (("base", scores.base), ("tuned", scores.tuned)):
        yield f"{name:<8}{sum(given) / count:>6.2f}   {'  '.join(f'{given.count(step):>4}' for step in steps)}"
    yield ""
    tuned, base, chance = preferred(scores)
    neither = count - tuned - base
    yield f"The tuned model's answer is preferred {tuned} times, the base's {base}, and {neither} times neither."
    words = "this may be chance" if chance > BY_CHANCE else "this is hardly chance"
    yield f"Such a difference or a larger one if neither were better: probability {figure(chance, 2)}; {words}."


def preferred(scores: Scores) -> tuple[int, int, float]:
    """How often the tuned model's answer has the higher score, how often the base's, and the probability of such a
    difference or a larger one if neither were better (two-sided sign test, pairs without a difference aside).
    """
    tuned = sum(t > b for t, b in zip(scores.tuned, scores.base, strict=True))
    base = sum(b > t for t, b in zip(scores.tuned, scores.base, strict=True))
    unequal = tuned + base
    tail = sum(math.comb(unequal, k) for k in range(min(tuned, base) + 1))
    return tuned, base, min(1.0, 2 * tail / 2**unequal)
