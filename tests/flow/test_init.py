"""From a csv to a trained model without writing a spec: `tunejob init`, `validate`, `run`; some of its rows are held out by default."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from job.plan.schedule import packed
from job.spec import parse_spec
from tests.data_rows import sized_model
from tests.flow.running import DEMO, Result, document, require_planned, strict, tunejob, valid_stats, write_spec
from tests.forking import environment, run_forked
from tests.specs import changed
from tests.tiny import tiny_dir

ROWS = 120
HELD_OUT = "8 of 120 rows are held out by default, drawn by training.seed 3407"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    with (folder / "lamps.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        writer.writerows([f"Turn on lamp {number}.", f"lamp {number}: on"] for number in range(ROWS))
    return folder


@pytest.fixture(scope="module")
def proposed(folder: Path) -> Result:
    arguments = ("init", "lamps.csv", "--model", str(tiny_dir()), "-o", "spec.json")
    return tunejob(*arguments, scratch=folder / "init", cwd=folder, extra={"PYTHONPROFILEIMPORTTIME": "1"})


def test_the_spec_is_valid_and_says_why_it_is_so(folder: Path, proposed: Result) -> None:
    assert proposed.exit_code == 0, proposed.stdout + proposed.stderr
    spec = parse_spec((folder / "spec.json").read_bytes())
    assert spec.data.train[0].columns == {"instruction": "question", "output": "answer"}
    assert spec.evaluation.prompts == ("Turn on lamp 0.", "Turn on lamp 59.", "Turn on lamp 119.")
    assert (spec.data.held_out, spec.output.uri, spec.model.backend) == ("auto", "lamps-tuned", "peft")
    assert "rows      120 in lamps.csv\n" in proposed.stdout
    assert proposed.stdout.count("⟦lamp ") == 3, "three samples with the learned part marked"
    imported = set(re.findall(r"\| +(\w+)$", proposed.stderr, re.MULTILINE))
    assert "tokenizers" in imported
    assert "torch" not in imported, "it would take seconds"
    assert "Next: tunejob validate spec.json && tunejob run spec.json" in proposed.stdout


def test_it_trains_and_what_was_held_out_is_said_everywhere(folder: Path, proposed: Result) -> None:
    assert proposed.exit_code == 0
    result = tunejob("run", "spec.json", scratch=folder / "run", cwd=folder, forked=True)
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-3000:]
    assert HELD_OUT in [event["text"] for event in result.named("note")]
    output = folder / "lamps-tuned"
    stats = valid_stats(output / "stats.json")
    data = stats["data"]
    assert (data["held_out"]["rows"], data["train"]["rows"], data["held_out_words"]) == (8, ROWS - 8, HELD_OUT)
    for page in ("report/summary.md", "README.md"):
        assert f" {HELD_OUT}.\n\n" in (output / page).read_text("utf-8"), page
    planned = tunejob("plan", "spec.json", "--json", scratch=folder / "plan", cwd=folder, forked=True)
    assert planned.exit_code == 0, planned.stderr
    require_planned(strict(planned.stdout), stats)
    losses = document(output / "manifest.json")["results"]
    assert losses["trained"]["held_out_loss"] < losses["base"]["held_out_loss"]


def test_packs_are_planned_as_trl_makes_them(tmp_path: Path) -> None:
    """Here, where a process has imported it."""
    lengths = [37 * number % 61 + 1 for number in range(1200)]
    arguments = [json.dumps(lengths), "64"]
    code, said, complaint = run_forked("tests.flow.packs:main", arguments, tmp_path, environment(tmp_path), 60)
    assert code == 0, complaint
    assert sorted(packed(lengths, 64)) == sorted(json.loads(said.splitlines()[-1]))


def test_a_plan_that_fits_no_gpu_is_said_before_it_ends_with_13(folder: Path, tmp_path: Path) -> None:
    sized_model(tmp_path, 200_000_000_000, {"hidden_size": 16384, "num_hidden_layers": 62})
    model = {"source": str(tmp_path), "precision": "16bit"}
    document = changed({"/model": model, "/data/train/0": {"source": str(DEMO / "train.jsonl"), "format": "messages"}})
    spec = write_spec(tmp_path / "spec.json", document)
    result = tunejob("plan", spec, "--sample", "50", scratch=folder / "too-large", forked=True)
    assert result.exit_code == 13, result.stderr
    assert "  H200      141 GB  no " in result.stdout
    last_words = strict(result.last_words)
    assert (last_words["class"], last_words["stage"], last_words["pointer"]) == ("CapacityError", "plan", "/model/source")
