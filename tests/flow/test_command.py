"""The command before any run: how fast it answers, and what it needs for that."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from job.spec.strict import load_schema
from tests.flow.running import ROOT, environment, tiny, tunejob, write_spec

HEAVY = ("torch", "transformers", "datasets", "boto3", "pyarrow", "huggingface_hub", "unsloth", "peft", "trl")


def test_help_is_quick(tmp_path: Path) -> None:
    seconds = []
    for _ in range(5):
        result = tunejob("--help", scratch=tmp_path)
        assert result.exit_code == 0
        assert "validate" in result.stdout
        seconds.append(result.seconds)
    print(f"--help: {statistics.median(seconds):.3f} s")
    assert statistics.median(seconds) < 1.5  # 0.5 on an idle machine


def test_validate_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    path = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out"))
    code = (
        "import json, sys; from job.__main__ import main; code = main(['validate', sys.argv[1]]);"
        "print(json.dumps({'code': code, 'modules': sorted(sys.modules)}))"
    )
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0
    assert {name.partition(".")[0] for name in found["modules"]} & set(HEAVY) == set()
    valid = tunejob("validate", path, scratch=tmp_path)
    print(f"validate: {valid.seconds:.3f} s")
    assert valid.seconds < 3
    assert valid.events[0]["event"] == "valid"


# What people get wrong first: the changes, the pointer, words of the answer.
TYPICAL: list[tuple[dict[str, Any], str, str]] = [
    ({"/data/train/0/source": "tests/demo/trian.jsonl"}, "/data/train/0/source", "Did you mean train.jsonl?"),
    ({"/data/train/0/format": "alpaca"}, "/data/train/0/columns", "The columns fit format messages"),
    ({"/model/source": "HuggingFaceTB/SmolLM2-135M"}, "/model/source", "Did you mean hf://HuggingFaceTB/SmolLM2-135M?"),
    ({"/model/source": "tests/demo"}, "/model/source", "this is not a model"),
    ({"/training": {"num_train_epochs": 3, "lr": 2e-4}}, "/training/lr", "Here it is /training/learning_rate"),
]
MISTAKEN = """
import json, sys, time
began = time.process_time()
from job.__main__ import main
for path in sys.argv[1:]:
    main(["validate", path])
    ended = time.process_time()
    print(json.dumps({"event": "took", "seconds": ended - began}))
    began = ended
print(json.dumps({"event": "modules", "names": sorted(sys.modules)}))
"""


def test_typical_mistakes_are_answered_in_under_a_second(tmp_path: Path) -> None:
    paths = [
        write_spec(tmp_path / f"{index}.json", tiny(tmp_path / "out", changes))
        for index, (changes, _, _) in enumerate(TYPICAL)
    ]
    command = [sys.executable, "-c", MISTAKEN, *paths]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=True
    )
    *said, modules = map(json.loads, done.stdout.splitlines())
    failed, took = said[::2], said[1::2]
    for event, (_, pointer, words) in zip(failed, TYPICAL, strict=True):
        assert (event["event"], event["pointer"]) == ("failed", pointer)
        assert words in event["message"] + event.get("hint", "")
    print([round(event["seconds"], 2) for event in took])
    assert all(event["seconds"] < 1 for event in took), "the first one imports what all need"
    assert {name.partition(".")[0] for name in modules["names"]} & set(HEAVY) == set()


def test_schema_prints_the_shipped_schema(tmp_path: Path) -> None:
    result = tunejob("schema", scratch=tmp_path)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == load_schema("job")


WRONG = [("train", "spec.json"), ("run",), ("run", "a", "b"), ("run", "a", "--fast"), ("run", "a", "--log", "x")]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage_is_a_spec_error(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = tunejob(*arguments, scratch=tmp_path)
    assert result.exit_code == 10
    assert result.failure["class"] == "SpecError"
    assert "--help" in result.failure["hint"]


def test_a_missing_spec_is_a_spec_error(tmp_path: Path) -> None:
    for command in ("validate", "run"):
        result = tunejob(command, str(tmp_path / "none.json"), scratch=tmp_path)
        assert result.exit_code == 10
        assert "No such file" in result.failure["message"]
