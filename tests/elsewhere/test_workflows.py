"""The workflows: linted offline as files, and the shell of their steps run for real against replayed programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.errors import CapacityError, GateError, JobError
from job.errors.facts import failure_facts
from tests.elsewhere.cluster import NAME, NAMESPACE, RUNNING, Step, condition, ended, job, line, pod, replay
from tests.elsewhere.tools import BIN, ROOT, needs_tools, tool
from tests.renders import PUSHED

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TUNE = GITHUB / "workflows" / "tune.yml"
SCHEMAS = {
    **dict.fromkeys(WORKFLOWS, "vendor.github-workflows"),
    GITHUB / "actions" / "command" / "action.yml": "vendor.github-actions",
    GITHUB / "dependabot.yml": "vendor.dependabot",
}
SPEC = ROOT / "schemas" / "examples" / "finetome-llama31-8b.json"


# ------------------------------------------------------------------------------------------------------ files


@needs_tools
@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_the_form(path: Path) -> None:
    done = tool("check-jsonschema", "--builtin-schema", SCHEMAS[path], path)
    assert done.returncode == 0, done.stdout


def actionlint(*paths: Path) -> subprocess.CompletedProcess[str]:
    return tool("actionlint", "-shellcheck", BIN / "shellcheck", *paths)


def zizmor(path: Path) -> subprocess.CompletedProcess[str]:
    return tool("zizmor", "--offline", "--persona", "auditor", "--config", GITHUB / "zizmor.yml", path)


@needs_tools
def test_actionlint_with_shellcheck_finds_nothing() -> None:
    done = actionlint(*WORKFLOWS)
    assert done.returncode == 0, done.stdout


@needs_tools
def test_zizmor_finds_nothing() -> None:
    done = zizmor(GITHUB)
    assert done.returncode == 0, done.stdout


BREAKS = {
    "a step that is not there": ("steps.submit.outputs.job", "steps.submitted.outputs.job", actionlint),
    "a key nobody knows": ("  workflow_call:\n", "  workflow_calls:\n", actionlint),
    "an unquoted word": ('job validate "$spec"', "job validate $spec", actionlint),
    "text of a caller in a script": ('IMAGE"', 'IMAGE ${{ inputs.image }}"', zizmor),
    "an action by its tag": ("@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7", zizmor),
    "a kept token": ("persist-credentials: false", "persist-credentials: true", zizmor),
    "all rights": ("permissions: {}\n", "permissions: write-all\n", zizmor),
}


@needs_tools
@pytest.mark.parametrize("what", BREAKS)
def test_the_linters_notice(what: str, tmp_path: Path) -> None:
    found, put, linter = BREAKS[what]
    text = TUNE.read_text()
    assert found in text
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    broken = folder / "tune.yml"
    broken.write_text(text.replace(found, put, 1))
    assert linter(broken).returncode != 0


def steps(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, work in yaml.safe_load(path.read_text())["jobs"].items():
        yield from ((name, step) for step in work.get("steps", ()))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_rights_are_the_least(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    assert all(work["permissions"] == {"contents": "read"} for work in workflow["jobs"].values())


def test_actions_are_pinned_by_commit_and_named_by_version() -> None:
    text = "\n".join(path.read_text() for path in SCHEMAS)
    used = re.findall(r"uses: (.*)", text)
    pinned = re.compile(r"actions/(checkout|setup-python|cache)@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [use for use in used if not pinned.fullmatch(use) and not use.startswith("./")] == [
        "me/tunejob/.github/workflows/tune.yml@COMMIT     "
        "# your fork, and a full commit id of it: no release is out yet"
    ]
    by_action: dict[str, set[str]] = {}
    for use in filter(pinned.fullmatch, used):
        by_action.setdefault(use.partition("@")[0], set()).add(use)
    assert {len(pins) for pins in by_action.values()} == {1}, "one version of each action"


def test_ci_runs_targets_that_exist() -> None:
    ci = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(ci["jobs"]["make"]["strategy"]["matrix"]["target"]) <= targets


# ------------------------------------------------------------------------------------------------------ steps


def shell(name: str, within: str) -> str:
    """What the step does, as GitHub hands it to bash."""
    return next(str(step["run"]) for work, step in steps(TUNE) if step.get("name") == name and work == within)


def perform(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a step in `folder` as GitHub's runner does, which also makes these files and variables."""
    bash = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    runner = {
        "RUNNER_TEMP": str(folder),
        "GITHUB_OUTPUT": str(folder / "outputs"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
    }
    locale = {"LC_ALL": "C.UTF-8"}  # bash complains of one that is not installed, among what the step prints
    variables = {**os.environ, **locale, **runner, "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        bash,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


def check(folder: Path, specs: str, run: str = "") -> subprocess.CompletedProcess[str]:
    return perform(shell("Check", "check"), folder, SPECS=specs, RUN=run)


def test_specs_are_checked(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    for name in ("a", "b c"):
        (tmp_path / "specs" / f"{name}.json").write_text(SPEC.read_text())
    assert check(tmp_path, "specs/*.json\nnothing/*.json").returncode == 0
    none = check(tmp_path, "$(touch here)\nother/*.json")
    assert none.returncode == 11
    assert not (tmp_path / "here").exists()
    (tmp_path / "specs" / "b c.json").write_text('{"version": 1, "::error::owned": 1}')
    bad = check(tmp_path, "specs/*.json")
    assert bad.returncode == 10
    assert '"event": "valid"' in bad.stdout
    assert '"class": "SpecError"' in bad.stdout
    resume = re.search("::stop-commands::([0-9a-f]{64})\n", bad.stdout)
    assert resume
    assert bad.stdout.endswith(f"::{resume[1]}::\n::error::a spec is not valid: every fault is in the log\n")
    assert check(tmp_path, "specs/a.json", run="specs/b c.json").returncode == 10, (
        "the one to run is checked in any case"
    )


KUBECTL = """#!/bin/sh
echo "$@" >> commands
case "$*" in
  "--namespace tuning create "*)
    grep -o 'kind: Job$' manifests.yaml >/dev/null && printf 'configmap/x\\njob.batch/{name}\\n' ;;
  "--namespace tuning wait "*) exit {failed} ;;
esac
"""


def submit(folder: Path, failed: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    program = folder / "kubectl"
    program.write_text(KUBECTL.format(name=NAME, failed=int(not failed)))
    program.chmod(0o755)
    known = {"SPEC": str(SPEC), "IMAGE": "", "OPTIONS": "--parameters 8b", "KUSTOMIZATION": "", "NAMESPACE": NAMESPACE}
    files = {
        "KUBECONFIG": str(folder / "kubeconfig"),
        "MANIFESTS": str(folder / "manifests.yaml"),
        "KUBECONFIG_TEXT": "apiVersion: v1",
    }
    return perform(shell("Submit", "kubernetes"), folder, **(known | files | environment))


def commands(folder: Path) -> list[str]:
    return [re.sub(r" /\S*/", " ", text) for text in (folder / "commands").read_text().splitlines()]


def test_a_job_is_submitted(tmp_path: Path) -> None:
    done = submit(tmp_path, failed=False)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "outputs").read_text() == f"job=job.batch/{NAME}\n"
    assert (tmp_path / "kubeconfig").stat().st_mode & 0o777 == 0o600
    assert commands(tmp_path) == [
        "--namespace tuning create --dry-run=client --output name --filename manifests.yaml",
        f"--namespace tuning wait --for=condition=Failed --timeout=0s job.batch/{NAME}",
        "--namespace tuning apply --server-side --filename manifests.yaml",
    ]
    kinds = [document["kind"] for document in yaml.safe_load_all((tmp_path / "manifests.yaml").read_text())]
    assert kinds[-1] == "Job"


def test_a_job_that_failed_makes_room(tmp_path: Path) -> None:
    assert submit(tmp_path, failed=True).returncode == 0
    assert commands(tmp_path)[2:] == [
        f"--namespace tuning delete --wait job.batch/{NAME}",
        "--namespace tuning apply --server-side --filename manifests.yaml",
    ]


def test_a_spec_that_cannot_run_there_is_not_submitted(tmp_path: Path) -> None:
    local = tmp_path / "spec.json"
    local.write_text(SPEC.read_text().replace("s3://models/finetome-llama31-8b", "/data/out"))
    done = submit(tmp_path, failed=False, SPEC=str(local))
    assert done.returncode == 10
    assert not (tmp_path / "commands").exists()


def failed(kind: type[JobError]) -> str:
    return line("failed", **failure_facts(kind("why"), "train", "0" * 16))


def test_the_step_exits_with_the_code_of_the_run(tmp_path: Path) -> None:
    log = [line("start", run_id="0" * 16, output=""), "::set-output name=job::other", failed(GateError)]
    end = condition("Failed", "PodFailurePolicy", "exit code 14")
    replay(
        tmp_path,
        [
            Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": log}),
            Step(job(end), [pod(1, ended(14), phase="Failed")], {f"{NAME}-1": log}),
        ],
    )
    unset = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"), "")
    script = shell("Wait", "kubernetes").replace('wait "$JOB"', 'wait "$JOB" --poll-seconds 0.01')
    done = perform(script, tmp_path, JOB=f"job.batch/{NAME}", NAMESPACE=NAMESPACE, **unset)
    assert done.returncode == 14
    assert done.stdout.startswith("::stop-commands::"), "what the log says is not a command of the workflow"
    assert "failed with exit code 14" in (tmp_path / "summary").read_text()


SKY = """#!/bin/sh
echo "$@" > commands
printf '\\033[36m(run, pid=7)\\033[0m %s\\n' '{line}'
echo 'Managed job finished: 1'
exit {code}
"""


@pytest.mark.parametrize(
    ("last", "code", "expected"),
    [
        (line("published", run_id="0" * 16, output=""), 0, 0),
        (failed(CapacityError), 100, 13),
        ("no machine is available", 100, 1),
    ],
)
def test_a_rented_gpu(last: str, code: int, expected: int, tmp_path: Path) -> None:
    program = tmp_path / "sky" / "bin" / "sky"
    program.parent.mkdir(parents=True)
    program.write_text(SKY.format(line=last, code=code))
    program.chmod(0o755)
    given = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "",
        "AWS_ENDPOINT_URL": "",
        "HF_TOKEN": "",
    }
    where = {
        "SPEC": str(SPEC),
        "IMAGE": PUSHED,
        "OPTIONS": "",
        "NAME": "tunejob-7",
        "TASK": str(tmp_path / "task.yaml"),
    }
    done = perform(shell("Submit and wait", "skypilot"), tmp_path, **given, **where)
    assert done.returncode == expected, done.stdout
    assert commands(tmp_path) == [
        "jobs launch --yes --name tunejob-7 --secret AWS_ACCESS_KEY_ID --secret AWS_SECRET_ACCESS_KEY task.yaml"
    ]
    assert "secret" not in (tmp_path / "summary").read_text()
    assert yaml.safe_load((tmp_path / "task.yaml").read_text())["resources"]["accelerators"]
