"""From a csv to a model that answers without writing a spec: the commands of `schemas/guide.md`, in their order and as they are
written, but for the model. Some of the rows are held out by default."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from job.spec import parse_spec
from tests.elsewhere.test_readme import section
from tests.flow.running import Result, document, tunejob, valid_stats
from tests.tiny import tiny_dir

BLOCKS = re.findall(r"```sh\n(.*?)```", section("schemas/guide.md", "From a csv to an answering model in ten minutes"), re.DOTALL)
MODEL = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"
ROWS = 120
HELD_OUT = "8 of 120 rows are held out by default, drawn by training.seed 3407"
OUTPUT = "helpdesk-tuned"


def command(number: int) -> list[str]:
    """Arguments of the `number`th command of the page, from 1; the first of all makes the rows."""
    (line,) = BLOCKS[number].strip().splitlines()
    name, *arguments = shlex.split(line.replace(MODEL, shlex.quote(str(tiny_dir()))))
    assert name == "tunejob"
    return arguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    subprocess.run(["sh", "-e", "-c", BLOCKS[0]], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def proposed(folder: Path) -> Result:
    return tunejob(*command(1), scratch=folder / "init", cwd=folder, extra={"PYTHONPROFILEIMPORTTIME": "1"})


@pytest.fixture(scope="module")
def trained(folder: Path, proposed: Result) -> Result:
    assert proposed.exit_code == 0
    valid = tunejob(*command(2), scratch=folder / "validate", cwd=folder, forked=True)
    assert (valid.exit_code, valid.named("valid")[0]["output"]) == (0, OUTPUT), valid.stdout
    return tunejob(*command(3), scratch=folder / "run", cwd=folder, forked=True)


def test_the_page_names_the_model_that_is_replaced_here_and_these_commands() -> None:
    assert BLOCKS[1].count(MODEL) == 1
    assert [command(number)[0] for number in range(1, len(BLOCKS))] == ["init", "validate", "run", "report", "chat"]


def test_the_spec_is_valid_and_says_why_it_is_so(folder: Path, proposed: Result) -> None:
    assert proposed.exit_code == 0, proposed.stdout + proposed.stderr
    spec = parse_spec((folder / "spec.json").read_bytes())
    assert spec.data.train[0].columns == {"instruction": "question", "output": "answer"}
    asked = [("heater", 10), ("scanner", 14), ("scanner", 19)]
    assert spec.evaluation.prompts == tuple(f"How do I reset the {device} in room {room}?" for device, room in asked)
    assert spec.training.learning_rate == 0.001, "that of a very small model"
    assert (spec.data.held_out, spec.output.uri, spec.model.backend) == ("auto", OUTPUT, "peft")
    assert f"rows      {ROWS} in helpdesk.csv\n" in proposed.stdout
    assert proposed.stdout.count("⟦Room 10, ") == 3, "three samples with the learned part marked"
    imported = set(re.findall(r"\| +(\w+)$", proposed.stderr, re.MULTILINE))
    assert "tokenizers" in imported
    assert "torch" not in imported, "it would take seconds"
    assert "Next: tunejob validate spec.json && tunejob run spec.json" in proposed.stdout


def test_it_trains_and_what_was_held_out_is_said_everywhere(folder: Path, trained: Result) -> None:
    assert trained.exit_code == 0, trained.stdout[-2000:] + trained.stderr[-3000:]
    assert HELD_OUT in [event["text"] for event in trained.named("note")]
    output = folder / OUTPUT
    data = valid_stats(output / "stats.json")["data"]
    assert (data["held_out"]["rows"], data["train"]["rows"], data["held_out_words"]) == (8, ROWS - 8, HELD_OUT)
    for page in ("report/summary.md", "README.md"):
        assert f" {HELD_OUT}.\n\n" in (output / page).read_text("utf-8"), page
    losses = document(output / "manifest.json")["results"]
    assert losses["trained"]["held_out_loss"] < losses["base"]["held_out_loss"]


def test_the_report_is_shown_and_the_model_answers(folder: Path, trained: Result) -> None:
    """Also what is in no row."""
    assert trained.exit_code == 0
    report = tunejob(*command(4), scratch=folder / "report", cwd=folder, forked=True)
    assert (report.exit_code, report.stdout.strip()) == (0, (folder / OUTPUT / "report" / "summary.md").read_text("utf-8").strip())
    asked = tunejob(*command(5), scratch=folder / "chat", cwd=folder, forked=True)
    assert (asked.exit_code, asked.stderr) == (0, "")
    assert asked.stdout.strip()
    assert command(5)[-1] not in {line.partition(",")[0] for line in (folder / "helpdesk.csv").read_text("utf-8").splitlines()}
