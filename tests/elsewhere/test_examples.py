"""The shipped files for other places: byte for byte what `tunejob render` writes, right to the places' programs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.errors import TREE
from job.render import TARGETS
from job.render.image import IMAGE as BUILT
from job.spec import parse_spec
from tests.elsewhere.examples import BY_HAND, EXAMPLES, FOLDER, HERE, IMAGE, SOURCE, SPECS
from tests.elsewhere.test_workflows import zizmor
from tests.elsewhere.tools import BIN, needs_tools, tool
from tests.forking import environment, run_forked

SPEC = (SPECS / "finetome-llama31-8b.json").read_text()


def test_every_target_has_its_example_and_no_file_is_left_over() -> None:
    assert {target for _, target in EXAMPLES.values()} == set(TARGETS)
    assert {path.name for path in FOLDER.iterdir()} == set(EXAMPLES) | BY_HAND


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_the_command_writes(name: str, tmp_path: Path) -> None:
    spec, target = EXAMPLES[name]
    command = ["render", str(SPECS / f"{spec}.json"), "--to", target, "-o", str(tmp_path / name)]
    command += [] if target in HERE else ["--image", IMAGE]
    command += ["--source", SOURCE] if target == "actions" else []
    code, said, complaint = run_forked("job.__main__:main", [command], tmp_path, environment(tmp_path), 60)
    assert code == 0, said + complaint
    assert (FOLDER / name).read_bytes() == (tmp_path / name).read_bytes(), "run: make examples"


def read(place: str, tmp_path: Path) -> dict[str, Any]:
    """The example as that place's own package understands it."""
    name = next(name for name, (_, target) in EXAMPLES.items() if target == place)
    reader = Path(__file__).with_name("readers.py")
    done = tool(
        "python",
        reader,
        place,
        FOLDER / name,
        HOME=str(tmp_path),
        SKYPILOT_DISABLE_USAGE_COLLECTION="1",
        PYTHONWARNINGS="ignore",
    )
    assert done.returncode == 0, done.stdout
    return dict(json.loads(done.stdout.splitlines()[-1]))


def written_spec(commands: str, tmp_path: Path) -> str:
    """What the part of a script that carries the spec puts out."""
    script = commands.partition(" > /tmp/spec.json")[0].partition(" |\n")[0]
    return subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path).stdout


@needs_tools
def test_skypilot_reads_its_example(tmp_path: Path) -> None:
    task = read("skypilot", tmp_path)
    assert set(task["cards"].values()) == {1}
    assert {"L4", "A100-80GB", "H100"} <= set(task["cards"])
    assert task["secrets"] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"]
    assert IMAGE in task["run"]
    printf = task["run"][task["run"].index("printf %s '") :]
    assert written_spec(printf, tmp_path) == SPEC
    recovery = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [
        kind.exit_code for kind in TREE if kind.retryable and kind.exit_code != 1
    ]


@needs_tools
def test_dstack_reads_its_example(tmp_path: Path) -> None:
    task = read("dstack", tmp_path)
    assert (task["type"], task["image"], task["gpus"]) == ("task", IMAGE, [1, 1])
    assert task["gpu_memory"] >= 24
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(task["env"])
    assert written_spec(task["commands"][0], tmp_path) == SPEC
    assert task["commands"][1].endswith("run /tmp/spec.json")


def compose(*files: str) -> dict[str, Any]:
    """The files as Docker Compose lays them over one another."""
    chosen = [argument for name in files for argument in ("--file", FOLDER / name)]
    done = tool("docker-compose", *chosen, "config", "--format", "json")
    assert done.returncode == 0, done.stdout
    return dict(json.loads(done.stdout))


@needs_tools
def test_docker_compose_reads_its_example(tmp_path: Path) -> None:
    job = compose("compose.yaml")["services"]["tunejob"]
    assert job["deploy"]["resources"]["reservations"]["devices"] == [
        {"capabilities": ["gpu"], "driver": "nvidia", "count": 1}
    ]
    assert (job["read_only"], job["cap_drop"], job["image"]) == (True, ["ALL"], BUILT)
    spec = written_spec(job["command"][0].replace("$$", "$"), tmp_path)
    assert parse_spec(spec.encode()).resolved == parse_spec((SPECS / "try-out.json").read_bytes()).resolved


@needs_tools
def test_the_try_out_has_a_store_and_needs_no_gpu() -> None:
    services = compose("compose.yaml", "object-store.yaml", "cpu.yaml")["services"]
    assert set(services) == {"store", "bucket", "tunejob"}
    assert services["tunejob"].get("deploy") is None
    assert services["tunejob"]["environment"]["TUNEJOB_DEVICE"] == "cpu"
    assert services["tunejob"]["depends_on"]["bucket"]["condition"] == "service_completed_successfully"
    assert [port["host_ip"] for port in services["store"]["ports"]] == ["127.0.0.1"]
    assert (
        len(
            {
                json.dumps([s["environment"].get(f"AWS_{key}") for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")])
                for s in services.values()
            }
        )
        == 1
    )
    upload = Path(services["bucket"]["volumes"][0]["source"])
    wanted = [source.source for source in parse_spec((SPECS / "try-out.json").read_bytes()).data.train]
    assert [f"s3://try-out/data/{path.name}" for path in upload.iterdir() if path.name == "train.jsonl"] == wanted


@needs_tools
@pytest.mark.parametrize("name", ["compose.yaml", "object-store.yaml"])
def test_a_compose_file_has_the_form_of_the_specification(name: str) -> None:
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", FOLDER / name)
    assert done.returncode == 0, done.stdout


@needs_tools
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.endswith(".sh")])
def test_shellcheck_finds_nothing(name: str) -> None:
    done = tool("shellcheck", "--exclude", "SC2016", FOLDER / name)  # a spec is to be taken as it is, "$schema" too
    assert done.returncode == 0, done.stdout


@needs_tools
def test_the_rendered_workflow_is_clean(tmp_path: Path) -> None:
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    workflow = Path(shutil.copy(FOLDER / "actions.yml", folder))
    form = tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", workflow)
    assert form.returncode == 0, form.stdout
    done = tool("actionlint", "-shellcheck", BIN / "shellcheck", "-ignore", "SC2016", workflow)
    assert done.returncode == 0, done.stdout
    audit = zizmor(workflow)
    assert audit.returncode == 0, audit.stdout
