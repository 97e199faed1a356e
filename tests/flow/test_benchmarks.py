"""Benchmarks by lm-eval on the tiny model: a task of lm-eval and two of one's own, local rows; and without lm-eval."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from job.evaluation.metrics import metric_of
from job.report.compare import compare
from job.report.compare_text import as_text
from tests.flow.running import ROOT, Result, document, fits_events, run_tiny, tiny, tunejob, valid_stats, write_spec
from tests.tiny import tiny_dir

pytestmark = pytest.mark.slow
TOOLS = ROOT / ".venv-benchmarks"
PACKAGES = next(TOOLS.glob("lib/python3*/site-packages"), None)
needs_lm_eval = pytest.mark.skipif(PACKAGES is None, reason="lm-eval is in .venv-benchmarks, which make test makes")
DOCUMENTS, LIMIT = 16, 12
FIGURES = ("arc_easy:acc", "arc_easy:acc_norm", "triage:acc", "triage:acc_norm", "sums:exact_match")


def write_rows(folder: Path) -> dict[str, str]:
    """Questions in the form of the ARC challenge, a csv of cases, and sums."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["lamp", "kettle", "door", "fan", "radio", "oven", "clock", "fridge"]
    arc = [
        {"id": str(n), "question": f"Which of these is number {n}?", "answerKey": "ABC"[n % 3],
         "choices": {"label": ["A", "B", "C"], "text": [words[(n + k * (n % 5 + 1)) % 8] for k in range(3)]}}
        for n in range(DOCUMENTS)
    ]  # fmt: skip
    (folder / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in arc))
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "label"])
        writer.writerows(
            [f"The {words[n % 8]} is {'on fire' if n % 3 else 'off'}.", "urgent" if n % 3 else "B"] for n in range(10)
        )
    sums = [{"question": f"{n} + 1 =", "answer": n + 1} for n in range(4)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    return {name: str(folder / name) for name in ("arc.jsonl", "cases.csv", "sums.jsonl")}


def tasks_of(places: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": "arc_easy", "source": places["arc.jsonl"], "few_shot": 2, "limit": LIMIT, "merged": True},
        {"name": "triage", "source": places["cases.csv"], "chat_template": True,
         "rows": {"question": "case", "choices": ["urgent", "not urgent"], "answer": "label"}},
        {"name": "sums", "source": places["sums.jsonl"], "rows": {}, "merged": True},
    ]  # fmt: skip


def run(folder: Path, gates: list[dict[str, Any]]) -> Result:
    evaluation = {"prompts": [], "max_new_tokens": 4, "tasks": tasks_of(write_rows(folder / "rows")), "gates": gates}
    wanted = {
        "/evaluation": evaluation,
        "/training/eval_batch_size": 4,
        "/model/precision": "16bit",
        "/export": {"merged": ["16bit"]},
        "/resources": {"gpus": 2},  # each goes through some of them
    }
    return run_tiny(folder, wanted, {"TUNEJOB_TEST_PACKAGES": str(PACKAGES)})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gates that hold and one that the merged weights do not hold: all is measured and stored, nothing published."""
    folder = tmp_path_factory.mktemp("benchmarks")
    gates = [{"metric": "arc_easy:acc", "gain_at_least": -1}, {"metric": "triage:acc_norm", "at_most": 1},
             {"metric": "sums:exact_match", "at_least": 1, "of": ["merged"]}]  # fmt: skip
    result = run(folder, gates)
    assert (result.exit_code, result.failure["pointer"]) == (14, "/evaluation/gates/2/at_least"), (
        result.stdout + result.stderr
    )
    assert fits_events(result.events) == []
    return folder / "out"


@needs_lm_eval
def test_base_and_tuned_have_figures_with_intervals(measured: Path) -> None:
    evaluation = valid_stats(measured / "stats.json")["evaluation"]
    assert [name for name in evaluation["trained"] if ":" in name] == list(FIGURES), "in the order of the spec"
    for name, count in zip(FIGURES, (LIMIT, LIMIT, 10, 10, 4), strict=True):
        about = evaluation["differences"][name]
        assert about["rows"] == about["of"] == count
        for model in ("base", "trained"):
            assert evaluation[model][name] * count == pytest.approx(round(evaluation[model][name] * count), abs=1e-4)
            assert about[model][0] <= evaluation[model][name] <= about[model][1]
    assert evaluation["trained"]["triage:acc"] != evaluation["base"]["triage:acc"] or about["difference"] == 0.0
    told = {task["name"]: task for task in evaluation["benchmarks"]["tasks"]}
    assert (told["arc_easy"]["few_shot"], told["arc_easy"]["documents"], told["arc_easy"]["of"]) == (
        2,
        LIMIT,
        DOCUMENTS,
    )
    assert told["arc_easy"]["versions"] == {"arc_easy": "1.0"}
    assert [len(source["sha256"]) for task in told.values() for source in task["data"]] == [64, 64, 64]


@needs_lm_eval
def test_the_merged_weights_have_the_figures_that_are_wanted_of_them(measured: Path) -> None:
    stats = valid_stats(measured / "stats.json")
    found, trained = stats["delivered"]["artefacts"], stats["evaluation"]["trained"]
    assert {name for name in found["merged"] if ":" in name} == {
        "arc_easy:acc",
        "arc_easy:acc_norm",
        "sums:exact_match",
    }
    for name in (
        "arc_easy:acc",
        "arc_easy:acc_norm",
    ):  # of the same documents, to one whose answers are as good as equal
        assert found["merged"][name] == pytest.approx(trained[name], abs=1.5 / LIMIT)
        assert found["trained"][name] == trained[name]
    assert "arc_easy:acc" not in found["adapter"]
    assert stats["failure"]["message"] == "merged does not pass this gate on sums:exact_match"


@needs_lm_eval
def test_pages_gates_and_comparison_have_them(measured: Path, tmp_path: Path) -> None:
    for page in ("report/summary.md", "report/report.html"):
        text = (measured / page).read_text("utf-8").replace("`", "")
        assert f"arc_easy, {LIMIT} of {DOCUMENTS} documents with 2 examples each, from " in text, page
        for name in FIGURES:
            title, _, _ = metric_of(name).title.partition(", ")
            assert title in text, (page, name)
    junit = (measured / "report" / "gates.junit.xml").read_text("utf-8")
    assert "arc_easy: acc better than the base by at least" in junit
    shutil.copytree(measured, other := tmp_path / "other")
    found = compare([str(measured), str(other)], "arc_easy:acc", {})
    assert found.by == "arc_easy:acc"
    assert set(FIGURES) <= set(found.metrics)
    assert "arc_easy: acc" in as_text(found)


@needs_lm_eval
@pytest.mark.long
def test_figures_are_those_of_the_command_line(measured: Path, tmp_path: Path) -> None:
    """The same model, rows, examples and batch: lm-eval's own command; only the place of the task's rows differs."""
    places = write_rows(tmp_path / "rows")
    found = command_line(tmp_path, places["arc.jsonl"])
    base = valid_stats(measured / "stats.json")["evaluation"]["base"]
    assert found["acc,none"] == pytest.approx(base["arc_easy:acc"], abs=1e-6)
    assert found["acc_norm,none"] == pytest.approx(base["arc_easy:acc_norm"], abs=1e-6)
    assert 0 < found["acc,none"] < 1, "figures that any model would have prove nothing"


def command_line(folder: Path, rows: str) -> dict[str, Any]:
    """What `lm-eval run` measures of the base."""
    assert PACKAGES is not None
    task = (PACKAGES / "lm_eval" / "tasks" / "arc" / "arc_easy.yaml").read_text("utf-8")
    lines = [
        line
        for line in task.splitlines()
        if not line.startswith(("task:", "dataset_", "training_split", "validation_split", "tag", "  - ai2"))
    ]
    extra = [
        "task: arc_here",
        "fewshot_split: test",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}",
    ]
    (folder / "tasks").mkdir()
    (folder / "tasks" / "arc_here.yaml").write_text("\n".join([*extra, *lines]) + "\n")
    command = [TOOLS / "bin" / "python", "-m", "lm_eval", "run", "--model", "hf", "--model_args",
               f"pretrained={tiny_dir()},dtype=float32",
               "--tasks", "arc_here", "--include_path", str(folder / "tasks"),
               "--num_fewshot", "2", "--limit", str(LIMIT),
               "--batch_size", "4", "--device", "cpu", "--output_path", str(folder / "results")]  # fmt: skip
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "results").rglob("results_*.json")
    return document(path)["results"]["arc_here"]


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed here")
def test_without_lm_eval_nothing_begins(tmp_path: Path) -> None:
    changes = {"/evaluation": {"prompts": [], "tasks": ["arc_easy"]}}
    result = run_tiny(tmp_path, changes)
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", changes))
    validated = tunejob("validate", spec, scratch=tmp_path / "scratch")
    for said in (result, validated):
        assert (said.exit_code, said.failure["pointer"]) == (11, "/evaluation/tasks")
        assert "make benchmarks" in said.failure["hint"]
    assert not (tmp_path / "out").exists()
    (note,) = [event["text"] for event in validated.named("note") if event["pointer"] == "/evaluation/tasks"]
    assert "--build-arg BENCHMARKS=1" in note, "which is what render says, too"


def test_rows_that_are_no_task_are_refused_at_once(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows")
    wrong = [
        {"name": "triage", "source": rows["cases.csv"], "rows": {}},
        {"name": "arc_easy", "source": rows["arc.jsonl"][:-1]},
    ]
    spec = write_spec(tmp_path / "wrong.json", tiny(tmp_path / "out", {"/evaluation": {"prompts": [], "tasks": wrong}}))
    said = tunejob("validate", spec, scratch=tmp_path / "scratch", extra={"PYTHONPATH": f"{ROOT}:{PACKAGES}"})
    assert (said.failure["exit_code"], said.failure["pointer"]) == (11, "/evaluation/tasks/0/rows")
    assert "cases.csv line 2: there is no column 'question', but case, label" in said.failure["message"]
