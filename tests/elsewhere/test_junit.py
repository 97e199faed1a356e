"""What became of the gates, as a CI reads it: JUnit XML by the reader that others use, Markdown as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from job.report.gates import all_gates, markdown, write_gates
from job.report.kept import Kept
from tests.elsewhere.tools import ROOT, needs_tools, tool
from tests.reports import BASE, TUNED, shown, statistics

READER = ROOT / "tests" / "elsewhere" / "readers.py"


def read(kept: Kept, folder: Path) -> dict[str, Any]:
    write_gates(kept.spec, kept.stats, kept.exports, folder)
    return json.loads(tool("python", READER, "junit", folder / "gates.junit.xml").stdout)


def found(cases: list[dict[str, Any]], suite: str) -> list[tuple[str, str]]:
    """Of a suite, what each case is about and how it ended."""
    return [
        (case["name"], case["results"][0][0] if case["results"] else "Passed")
        for case in cases
        if case["suite"] == suite
    ]


@needs_tools
def test_a_reader_of_junit_xml_finds_every_gate_and_counts_as_we_do(tmp_path: Path) -> None:
    weak = {"adapter": TUNED | {"exact_match": 0.25, "kl": 0.4}}
    delivered = statistics()["delivered"]
    stats = statistics(delivered=delivered | {"artefacts": {"base": BASE, "trained": TUNED} | weak})
    said = read(shown(stats), tmp_path)
    assert said["written"] == said["counted"] == [["run", 1, 0, 0, 0], ["gates", 4, 1, 0, 0], ["exports", 2, 1, 0, 0]]
    assert (said["name"], said["seconds"]) == ("tunejob lamps", 90.5)
    assert found(said["cases"], "run") == [("lamps: ends with exit code 0", "Passed")]
    assert found(said["cases"], "gates") == [
        ("the trained model: exact match at least 0.5", "Passed"),
        ("the trained model: held-out loss better than the base by at least 1", "Passed"),
        ("adapter: exact match at least 0.5", "Failure"),
        ("adapter: held-out loss better than the base by at least 1", "Passed"),
    ]
    (failed,) = (case["results"][0] for case in said["cases"] if case["suite"] == "gates" and case["results"])
    assert failed == [
        "Failure",
        "found 0.25",
        "adapter: exact match at least 0.5: found 0.25 (/evaluation/gates/0/at_least)",
    ]
    assert [ended for _, ended in found(said["cases"], "exports")] == ["Passed", "Failure"]


@needs_tools
def test_what_the_run_did_not_reach_is_skipped_and_texts_are_texts(tmp_path: Path) -> None:
    message = 'a <failure> & "more" ]]> \x00 \ud800 \ufffe'
    failure = {"class": "InputError", "exit_code": 11, "stage": "data", "message": message, "run_id": "", "faults": 1}
    stats = statistics(failure=failure, status="failed", evaluation={}, delivered={}, training={})
    said = read(shown(stats, {"report/exports.json": None}), tmp_path)
    assert said["written"] == said["counted"] == [["run", 1, 1, 0, 0], ["gates", 2, 0, 2, 0], ["exports", 2, 0, 2, 0]]
    (run,) = (case["results"][0] for case in said["cases"] if case["suite"] == "run")
    assert run[1] == 'found exit code 11 at data: a <failure> & "more" ]]> \\u0000 ? \ufffd'


def test_markdown_has_what_failed_at_first() -> None:
    kept = shown()
    lines = list(markdown("lamps", all_gates(kept.spec, kept.stats, kept.exports)))
    assert lines[0] == "### `lamps`: 1 of 9 checks failed"
    assert lines[4] == "| failed | `gguf-q8_0` | `kl at most 0.05` | `it is not within its limits, found kl 0.7` |"
    assert [line.split(" | ")[0] for line in lines[4:-1]] == ["| failed", *["| passed"] * 8]
