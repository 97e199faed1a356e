"""locks/light.txt is what the command needs without its image, locks/plan.txt a plan; versions of the image's lock."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.elsewhere.examples import ROOT, SPECS
from tests.specs import changed
from tests.tiny import tiny_dir

# Everything else that is installed here is made to be missing.
PROGRAM = """
import importlib.metadata, json, sys
from importlib.machinery import PathFinder
allowed = {"tunejob", *json.loads(sys.argv[1])}
owners = importlib.metadata.packages_distributions()

class Missing(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        names = {owner.lower().replace("_", "-") for owner in owners.get(name, ())}
        return None if names and not names & allowed else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Missing
from job.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
ROWS = str(ROOT / "tests" / "demo" / "train.jsonl")
SPEC = str(SPECS / "finetome-llama31-8b.json")


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "locks" / name).read_text()
    return dict(re.findall(r"^([a-z0-9][\w.-]*)==([\w.+!-]+)", text, re.MULTILINE))


def test_the_versions_are_those_of_the_whole_lock() -> None:
    light, more, whole = locked("light.txt"), locked("plan.txt"), locked("cpu.txt")
    assert {"boto3", "jsonschema", "pyyaml", "rich"} <= set(light)
    assert light.items() <= more.items() <= whole.items()
    assert "torch" not in more


def run(*arguments: str, lock: str = "light.txt") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(locked(lock))), *arguments]
    return subprocess.run(command, input="", capture_output=True, text=True, check=False)


COMMANDS = [
    (["validate", SPEC], 0),
    (["render", SPEC, "--to", "job"], 0),
    (["wait", "-"], 1),
    (["schema"], 0),
    (["init", ROWS], 0),
]


@pytest.mark.parametrize(("arguments", "code"), COMMANDS, ids=str)
def test_a_command_needs_nothing_else(arguments: list[str], code: int) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert "No module named" not in done.stdout + done.stderr


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(changed({"/model/source": str(tiny_dir()), "/data/train/0/source": ROWS})))
    refused = run("plan", str(spec))
    assert refused.returncode == 11, refused.stderr
    assert "locks/plan.txt" in refused.stderr
    done = run("plan", str(spec), "--json", lock="plan.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["rows"]["read_rows"] == len(Path(ROWS).read_text("utf-8").splitlines())


def test_rows_that_only_the_image_can_read_are_said_to_be_unseen(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(changed({"/data/train/0/source": str(tmp_path / "rows.parquet")})))
    done = run("validate", str(spec))
    assert done.returncode == 0, done.stdout
    assert "rows.parquet: its rows were not looked at: this installation has no pyarrow" in done.stdout


@pytest.mark.parametrize("command", ["report", "verify", "compare"])
def test_a_store_needs_nothing_else(command: str, bucket: str) -> None:
    outputs = [f"s3://{bucket}/nothing-here", f"s3://{bucket}/nor-here"]
    done = run(command, *outputs[: 2 if command == "compare" else 1])
    assert done.returncode == 11, done.stdout
    assert '"found": "nothing"' in done.stdout, "the store has answered: " + done.stdout


def test_the_rest_is_really_missing() -> None:
    assert "No module named" in run("run", SPEC).stdout
