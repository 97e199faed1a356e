"""From a csv to a model that answers without writing a spec: the commands of `schemas/guide.md` as they are written.

Only the model is another. Some of the rows are held out by default.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from job.plan.schedule import packed
from job.spec import parse_spec
from job.spec.sections import prompt_texts, references_of
from tests.data_rows import sized_model
from tests.elsewhere.test_readme import section
from tests.flow.running import (
    DEMO,
    Result,
    Running,
    document,
    require_planned,
    strict,
    tunejob,
    valid_stats,
    write_spec,
)
from tests.forking import environment, run_forked
from tests.specs import changed
from tests.tiny import tiny_dir

BLOCKS = re.findall(
    r"```sh\n(.*?)```", section("schemas/guide.md", "From a csv to an answering model in ten minutes"), re.DOTALL
)
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
    questions = tuple(f"How do I reset the {device} in room {room}?" for device, room in asked)
    assert prompt_texts(spec.evaluation.prompts) == questions
    answers = [f"Room {room}, {device}: " for device, room in asked]
    assert all(map(str.startswith, map(str, references_of(spec.evaluation.prompts)), answers))
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


def test_the_report_is_shown_and_the_model_answers(folder: Path, trained: Result) -> None:
    """Also what is in no row."""
    assert trained.exit_code == 0
    report = tunejob(*command(4), scratch=folder / "report", cwd=folder, forked=True)
    assert (report.exit_code, report.stdout.strip()) == (
        0,
        (folder / OUTPUT / "report" / "summary.md").read_text("utf-8").strip(),
    )
    asked = tunejob(*command(5), scratch=folder / "chat", cwd=folder, forked=True)
    assert (asked.exit_code, asked.stderr) == (0, "")
    assert asked.stdout.strip()
    assert command(5)[-1] not in {
        line.partition(",")[0] for line in (folder / "helpdesk.csv").read_text("utf-8").splitlines()
    }


@pytest.mark.parametrize("command", [("plan", "spec.json"), ("chat", OUTPUT)], ids=lambda command: command[0])
def test_a_stop_leaves_nothing_that_was_fetched(
    command: tuple[str, ...], folder: Path, trained: Result, tmp_path: Path
) -> None:
    """Scratch may hold a whole data set, or merged weights."""
    running = Running(command, tmp_path, cwd=folder, forked=True, given="And now?\n" * 1000)
    running.wait_until(lambda _: any(tmp_path.glob("tunejob-*")))
    running.signal(signal.SIGTERM)
    stopped = running.finish()
    assert (stopped.exit_code, json.loads(stopped.last_words)["class"]) == (30, "Interrupted"), (
        stopped.stdout + stopped.stderr
    )
    assert list(tmp_path.glob("tunejob-*")) == []


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
    assert (last_words["class"], last_words["stage"], last_words["pointer"]) == (
        "CapacityError",
        "plan",
        "/model/source",
    )


def test_a_spec_for_labelled_rows_trains(tmp_path: Path) -> None:
    """As `init` writes it but for the steps. What was measured is told by every page; a prompt whose answer is a bad
    one has no reference.
    """
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}." if n % 2 else "No.", "good": n % 2}
            for n in range(40)]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    asked = ("init", "rows.json", "--model", str(tiny_dir()), "--columns", "label=good", "-o", "spec.json")
    proposed = tunejob(*asked, scratch=tmp_path / "init", cwd=tmp_path, forked=True)
    assert proposed.exit_code == 0, proposed.stderr
    spec = document(tmp_path / "spec.json")
    assert spec["training"]["method"] == "kto"
    del spec["training"]["epochs"]
    spec["training"]["max_steps"], spec["evaluation"]["max_new_tokens"] = 4, 4
    write_spec(tmp_path / "short.json", spec)
    result = tunejob("run", "short.json", scratch=tmp_path / "run", cwd=tmp_path, forked=True)
    assert result.exit_code == 0, result.stdout[-2000:]
    output = tmp_path / spec["output"]["uri"]
    stats = valid_stats(output / "stats.json")
    known = stats["evaluation"]["differences"]
    assert {"preference_accuracy", "reward_margin"} <= set(known)
    *_, last = map(json.loads, (output / "report" / "losses.jsonl").read_text().splitlines())
    assert last["reward_margin"] != 0
    for page in ("report/summary.md", "README.md"):
        assert "Reward margin" in (output / page).read_text("utf-8")
