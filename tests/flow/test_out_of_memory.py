"""A micro-batch that does not fit is made smaller: the same rows a step, the same losses, and it is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.flow.running import LIMIT_SECONDS, document, run_tiny, tiny, write_spec
from tests.forking import environment, run_forked

STEPS = 8
CHANGES: dict[str, Any] = {
    "/training/max_steps": STEPS, "/training/batch_size": 4, "/training/gradient_accumulation_steps": 1,
    "/training/eval_steps": 4, "/training/eval_batch_size": 8, "/export/merged": [],
}  # fmt: skip


def run_short(
    folder: Path,
    rows: int,
    first_pass: int,
    changes: dict[str, Any],
    last_pass: int | None = None,
    rank: int | None = None,
) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events of a run where only `rows` fit, from a training pass on, and none from the last one on."""
    spec = write_spec(folder / "spec.json", tiny(folder / "out", changes))
    (folder / "scratch").mkdir(exist_ok=True)
    call = "tests.flow.short_of_memory:run"
    code, stdout, _ = run_forked(
        call, [rows, first_pass, last_pass, rank, ["run", spec]], folder, environment(folder / "scratch"), LIMIT_SECONDS
    )
    return code, [json.loads(line) for line in stdout.splitlines() if line.startswith('{"time"')]


def losses(output: Path) -> list[float]:
    lines = map(json.loads, (output / "report" / "losses.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def ample(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], int]:
    """Losses and tokens of a run with memory for every batch."""
    folder = tmp_path_factory.mktemp("ample")
    result = run_tiny(folder, CHANGES)
    assert result.exit_code == 0, result.stdout[-2000:]
    return losses(folder / "out"), document(folder / "out" / "stats.json")["training"]["tokens"]


@pytest.mark.parametrize("first_pass", [1, 5])
def test_it_recovers(first_pass: int, ample: tuple[list[float], int], tmp_path: Path) -> None:
    wanted, tokens = ample
    code, events = run_short(tmp_path, 1, first_pass, CHANGES)
    assert code == 0, events[-1]
    halved = [
        (e["step"], e["batch_size"], e["gradient_accumulation_steps"]) for e in events if e["event"] == "out of memory"
    ]
    assert halved == [(first_pass - 1, 2, 2), (first_pass - 1, 1, 4)]
    training = document(tmp_path / "out" / "stats.json")["training"]
    assert (training["batch_size"], training["gradient_accumulation_steps"], training["out_of_memory"]) == (1, 4, 2)
    assert training["steps"] == STEPS
    assert training["tokens"] == tokens
    found = losses(tmp_path / "out")
    assert len(found) == STEPS
    assert max(abs(a - b) / b for a, b in zip(found, wanted, strict=True)) < 1e-4, (found, wanted)


def test_one_row_does_not_fit(tmp_path: Path) -> None:
    code, events = run_short(
        tmp_path,
        0,
        1,
        {**CHANGES, "/data/held_out": {"rows": 8}, "/evaluation/prompts": []} | {"/training/eval_steps": 100},
    )
    assert code == 13, events[-1]
    assert events[-1]["pointer"] == "/training/batch_size"
    assert events[-1]["found"].startswith("1 rows")


def test_a_training_goes_on_in_the_micro_batches_it_was_left_with(
    ample: tuple[list[float], int], tmp_path: Path
) -> None:
    """What did not fit once is not tried again by the process that goes on."""
    changes = CHANGES | {"/output/checkpoints": {"every_steps": 3}}
    code, _ = run_short(tmp_path, 2, 1, changes, last_pass=12)  # one refused, then two a step: the sixth
    assert code == 13
    code, events = run_short(tmp_path, 4, 1, changes)
    assert code == 0, events[-1]
    assert [event["step"] for event in events if event["event"] == "resume"] == [3]
    assert [
        (event["batch_size"], event["gradient_accumulation_steps"]) for event in events if event["event"] == "steps"
    ] == [(2, 2)]
    assert max(abs(a - b) / b for a, b in zip(losses(tmp_path / "out"), ample[0], strict=True)) < 1e-4
