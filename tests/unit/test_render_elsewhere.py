"""Files for everything that is not Kubernetes, really run where they are scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from job.errors import SpecError
from job.preview.image_parts import PARTS, VLLM
from job.render import TARGETS
from job.render.image import IMAGE
from job.render.skypilot import ACCELERATORS
from tests.renders import LAYOUTS, PUSHED, ran, rendered

ROOT = Path(__file__).parents[2]
RAW = LAYOUTS["lines"]
DEMO = (ROOT / "schemas" / "examples" / "demo.json").read_bytes()
KEYS = {"AWS_ACCESS_KEY_ID": "id of mine", "AWS_SECRET_ACCESS_KEY": "secret $HOME", "AWS_REGION": ""}
SHELLS = ("bash", "dash")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("target", ["docker", "podman"])
def test_the_container_is_locked_down_and_its_exit_code_kept(target: str, shell: str, tmp_path: Path) -> None:
    code, seen, given = ran(rendered(RAW, target), tmp_path, target, shell)
    assert code == 14
    assert given == RAW
    assert seen[0] == "run"
    assert seen[-3:] == [IMAGE, "run", "-"]
    joined = " ".join(seen)
    for option in (
        "--rm",
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--memory 12g",
        "--shm-size 2g",
        "--pull never",
    ):
        assert f" {option} " in joined
    assert ("--gpus all" in joined) == (target == "docker")
    assert ("--device nvidia.com/gpu=all" in joined) == (target == "podman")
    assert "AWS_ACCESS_KEY_ID" not in seen


def test_variables_are_handed_on_by_name_where_they_are_set(tmp_path: Path) -> None:
    _, seen, _ = ran(rendered(RAW, "docker"), tmp_path, **KEYS)
    named = [seen[index + 1] for index, word in enumerate(seen) if word == "--env"]
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(named)
    assert not {"AWS_REGION", "HF_TOKEN"} & set(named)
    assert not [word for word in seen if "mine" in word or "$HOME" in word]


def test_options_of_the_user_and_a_ca_bundle_go_in(tmp_path: Path) -> None:
    _, seen, _ = ran(
        rendered(RAW, "docker"),
        tmp_path,
        arguments=("--network", "a b"),
        AWS_CA_BUNDLE="/certs/my ca.pem",
        TUNEJOB_GPUS="device=1",
    )
    assert seen[seen.index("--network") + 1] == "a b"
    assert seen.index("--network") < seen.index(IMAGE)
    assert "/certs/my ca.pem:/etc/tunejob/ca.pem:ro" in seen
    assert "AWS_CA_BUNDLE=/etc/tunejob/ca.pem" in seen
    assert seen[seen.index("--gpus") + 1] == "device=1"


def demo_files(folder: Path) -> None:
    for path in (
        ".cache/models/SmolLM2-135M-Instruct/config.json",
        "tests/demo/train.jsonl",
        "tests/demo/held_out.jsonl",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


@pytest.mark.parametrize("shell", SHELLS)
def test_paths_are_mounted_where_the_spec_expects_them(shell: str, tmp_path: Path) -> None:
    demo_files(tmp_path)
    code, seen, given = ran(rendered(DEMO, "docker"), tmp_path, shell=shell)
    assert (code, given) == (14, DEMO)
    mounts = {seen[index + 1] for index, word in enumerate(seen) if word == "--volume"}
    assert mounts == {
        "/scratch",
        "/tmp",
        f"{tmp_path}/.cache/models/SmolLM2-135M-Instruct:/here/.cache/models/SmolLM2-135M-Instruct:ro",
        f"{tmp_path}/tests/demo/train.jsonl:/here/tests/demo/train.jsonl:ro",
        f"{tmp_path}/tests/demo/held_out.jsonl:/here/tests/demo/held_out.jsonl:ro",
        f"{tmp_path}/demo-output:/here/demo-output",
    }
    assert seen[seen.index("--workdir") + 1] == "/here"
    assert seen[seen.index("--user") + 1] == f"{os.getuid()}:0"
    assert (tmp_path / "demo-output").is_dir()


def test_a_missing_path_is_reported_before_a_container_starts(tmp_path: Path) -> None:
    code, seen, _ = ran(rendered(DEMO, "docker"), tmp_path)
    assert (code, seen) == (11, [])


@pytest.mark.parametrize(
    "path", ["it's here", "a b", "$(touch pwned)", "-x", "a*", "../up/x", "/absolute/$HOME", 'q"q']
)
def test_hostile_paths_stay_paths(path: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    raw = RAW.replace(b'"s3://models/small"', json.dumps(path).encode())
    target = path if path.startswith("/") else os.path.normpath(f"/here/{path}")
    script = rendered(raw, "docker").replace("mkdir -p", ":")
    _, seen, given = ran(script, folder)
    assert given == raw
    assert f"{path if path.startswith('/') else f'{folder}/{path}'}:{target}" in seen
    assert not list(tmp_path.rglob("pwned"))


def test_the_same_path_twice_is_mounted_once_and_a_colon_is_refused(tmp_path: Path) -> None:
    twice = RAW.replace(b'"s3://data/rows.jsonl"', b'"rows"').replace(b'"hf://org/llama-8b"', b'"./rows"')
    (tmp_path / "rows").mkdir()
    _, seen, _ = ran(rendered(twice, "docker"), tmp_path)
    assert len([word for word in seen if word.endswith(":/here/rows:ro")]) == 1
    with pytest.raises(SpecError, match="colon"):
        rendered(RAW.replace(b'"s3://models/small"', b'"a:b"'), "docker")


@pytest.mark.parametrize("target", TARGETS)
def test_output_is_the_same_every_time_and_plain_text(target: str) -> None:
    first, again = (rendered(RAW, target) for _ in range(2))
    assert first == again
    assert first.endswith("\n")
    assert "\t" not in first
    assert not [line for line in first.splitlines() if line.startswith("#") and not line.isascii()]


@pytest.mark.parametrize("target", ["docker", "podman"])
def test_scripts_are_shell(target: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(rendered(RAW, target), "utf-8")
    for shell in SHELLS:
        subprocess.run([shell, "-n", str(script)], check=True)


def test_skypilot_asks_for_one_card_that_is_large_enough() -> None:
    task = yaml.safe_load(rendered(RAW, "skypilot", parameters="8b"))
    assert set(task["resources"]["accelerators"]) == set(ACCELERATORS)
    assert set(task["resources"]["accelerators"].values()) == {1}
    large = yaml.safe_load(rendered(RAW, "skypilot", parameters="100b"))
    assert set(large["resources"]["accelerators"]) == {"A100-80GB", "H100", "H200", "B200"}
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [20, 21, 30]}
    assert set(task["secrets"].values()) == set(task["envs"].values()) == {""}


def test_skypilot_takes_sudo_where_docker_needs_it(tmp_path: Path) -> None:
    """The function is used for docker only if docker itself refuses."""
    run = yaml.safe_load(rendered(RAW, "skypilot"))["run"]
    (tmp_path / "tools").mkdir()
    sudo = tmp_path / "tools" / "sudo"
    sudo.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "assert sys.argv[1] == '--preserve-env'\nos.execvp(sys.argv[2], sys.argv[2:])\n"
    )
    sudo.chmod(0o755)
    code, seen, given = ran(run, tmp_path)
    assert (code, given) == (14, RAW)
    assert seen[0] == "run"


def test_dstack_gets_a_name_it_takes_and_ranges_of_resources() -> None:
    task = yaml.safe_load(rendered(RAW.replace(b'"small"', b'"8' + b"x" * 60 + b'"'), "dstack"))
    assert len(task["name"]) <= 41
    assert task["name"][0].isalpha()
    assert task["resources"]["gpu"] == {"vendor": "nvidia", "memory": "24GB..", "count": 1}
    assert task["retry"]["on_events"] == ["no-capacity", "interruption"]
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(task["env"])


@pytest.mark.parametrize("target", ["dstack", "compose"])
def test_a_spec_that_no_argument_can_hold_is_refused(target: str) -> None:
    raw = RAW.replace(b'"name"', b" " * (130 << 10) + b'"name"')
    with pytest.raises(SpecError, match="too large for this target"):
        rendered(raw, target)
    assert len(rendered(raw, "docker")) > 130 << 10


def command(*arguments: str, **given: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "job", "render", *arguments], capture_output=True, check=False, cwd=ROOT, **given
    )  # type: ignore[call-overload,no-any-return]


def test_the_command_writes_the_file_and_nothing_else(tmp_path: Path) -> None:
    asked = ("-", "--to", "job", "--namespace", "tuning", "--image", PUSHED)
    done = command(*asked, input=RAW)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == rendered(RAW, "job", namespace="tuning", image=PUSHED)
    file = tmp_path / "job.yaml"
    assert command(*asked, "-o", str(file), input=RAW).stdout == b""
    assert file.read_bytes() == done.stdout


def test_a_failure_leaves_nothing_for_the_next_program_of_a_pipe() -> None:
    done = command("-", "--to", "job", input=b"{}")
    assert (done.returncode, done.stdout) == (10, b"")
    assert b'"class": "SpecError"' in done.stderr


def test_the_command_knows_every_target() -> None:
    from job.arguments import IMAGE_PARTS, RENDER_TARGETS

    assert tuple(TARGETS) == RENDER_TARGETS
    assert (*PARTS, VLLM) == IMAGE_PARTS
