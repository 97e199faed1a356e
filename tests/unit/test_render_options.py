"""Options of `tunejob render`: what they change in a file, which places know them, what a file says of its image."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.errors import InputError, SpecError
from job.render import TARGETS, image_note
from job.render.egress import egress_in
from job.render.image import IMAGE
from job.render.options import PARTICULAR, flag
from job.render.shell import JUDGE
from tests.renders import LAYOUTS, NEEDED, PUSHED, objects, options_of, ran, rendered, step

ROOT = Path(__file__).parents[2]
RAW = LAYOUTS["lines"]
GIVEN: dict[str, Any] = {
    "namespace": "tuning", "queue": "gpus", "pull_secret": "login", "service_account": "trainer",
    "annotation": ["eks.amazonaws.com/role-arn=arn:aws:iam::111122223333:role/tunejob"], "egress": ["10.0.0.0/8:9000"],
    "deadline": "3", "source": "https://git.example.com/tunejob@v0.1.0",
}  # fmt: skip


def text_of(target: str, **given: Any) -> str:
    return rendered(RAW, target, **given)


def head(text: str) -> str:
    return " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize("target", TARGETS)
def test_an_option_changes_the_file_or_is_refused_by_name(target: str) -> None:
    """Nothing that was asked for is dropped silently."""
    assert set(GIVEN) == set(PARTICULAR)
    known = TARGETS[target].knows
    plain = text_of(target)
    for name in known - NEEDED.get(target, {}).keys():
        assert text_of(target, **{name: GIVEN[name]}) != plain, name
    assert text_of(target, cpu=5) != plain
    with pytest.raises(SpecError) as refused:
        text_of(target, **{name: GIVEN[name] for name in GIVEN if name not in known})
    said = [str(fault) for fault in refused.value.faults]
    assert len(said) == len(GIVEN) - len(known)
    assert all(
        any(f"--to {target} does not know {flag(name)}." in text for text in said)
        for name in GIVEN
        if name not in known
    )


def pod_of(target: str, parts: dict[str, Any]) -> Any:
    """The pod as the cluster puts it together, as far as the options go."""
    match target:
        case "jobset":
            return parts["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        case "trainjob":
            (patch,) = parts["TrainJob"]["spec"]["runtimePatches"]
            made = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
                "template"
            ]["spec"]
            return made | {"containers": [{"resources": parts["TrainJob"]["spec"]["trainer"]["resourcesPerNode"]}]}
    return parts["Job"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("target", ["job", "kueue", "jobset", "trainjob"])
def test_the_pod_has_what_was_asked_for(target: str) -> None:
    given = {name: GIVEN[name] for name in ("pull_secret", "service_account", "annotation", "egress", "namespace")}
    documents = list(yaml.safe_load_all(text_of(target, cpu=5, **given)))
    pod = pod_of(target, {part["kind"]: part for part in documents})
    assert (pod["serviceAccountName"], pod["imagePullSecrets"]) == ("trainer", [{"name": "login"}])
    assert [pod["containers"][0]["resources"][side]["cpu"] for side in ("requests", "limits")] == ["5", "5"]
    (account,) = (part for part in documents if part["kind"] == "ServiceAccount")
    assert account["metadata"]["name"] == "trainer"
    assert account["metadata"]["annotations"] == {
        "eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/tunejob"
    }
    shipped, own = (part for part in documents if part["kind"] == "NetworkPolicy")
    assert shipped["metadata"]["name"] == "tunejob", "one for all runs, which another run's file must not change"
    assert own["metadata"]["name"] == documents[0]["metadata"]["name"]
    label = "batch.kubernetes.io/job-name" if target in ("job", "kueue") else "jobset.sigs.k8s.io/jobset-name"
    assert own["spec"]["podSelector"] == {"matchLabels": {label: own["metadata"]["name"]}}
    assert own["spec"]["egress"] == [
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"protocol": "TCP", "port": 9000}]}
    ]
    assert {part["metadata"].get("namespace", "tuning") for part in documents} == {"tuning"}


def test_an_account_that_is_there_is_left_as_it_is() -> None:
    parts = objects(text_of("job", service_account="trainer"))
    assert "ServiceAccount" not in parts
    assert parts["Job"]["spec"]["template"]["spec"]["serviceAccountName"] == "trainer"
    assert objects(text_of("job", annotation=["a=b"]))["ServiceAccount"]["metadata"]["name"] == "tunejob"


def test_the_deadline_is_a_day_or_what_was_asked_for() -> None:
    for hours, given in ((24, {}), (3, {"deadline": "3"})):
        text = text_of("job", **given)
        assert objects(text)["Job"]["spec"]["activeDeadlineSeconds"] == hours * 3600
        assert yaml.safe_load(text_of("dstack", **given))["max_duration"] == f"{hours}h"
        assert f"Deadline: {hours} hours for all tries together (--deadline HOURS)" in head(text)


OUT, NONE = "is out of range", "is neither hours nor a plan"


@pytest.mark.parametrize(
    ("text", "words"), [("0", OUT), ("-1", OUT), ("9000", OUT), ("1.5", NONE), ("spec.json", NONE)]
)
def test_a_deadline_that_is_none_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(
        SpecError, match=rf"--deadline {words} .*1 to 8760 hours, or the path of a plan.*tunejob plan spec.json --json"
    ):
        options_of("job", deadline=text)


EGRESS = {
    "10.1.2.3:9000": ("10.1.2.3/32", []),
    "fd00::/8:443": ("fd00::/8", ["fd00:ec2::/32"]),
    "::1/128:443": ("::1/128", []),
    "0.0.0.0/0:80": ("0.0.0.0/0", ["169.254.0.0/16"]),
}


@pytest.mark.parametrize("text", EGRESS)
def test_egress_leaves_metadata_closed(text: str) -> None:
    rule = egress_in(text).rule()
    cidr, holes = EGRESS[text]
    assert rule["to"] == [{"ipBlock": {"cidr": cidr} | ({"except": holes} if holes else {})}]
    assert rule["ports"] == [{"protocol": "TCP", "port": int(text.rpartition(":")[2])}]


BAD = {
    "169.254.169.254:80": "is link-local", "fe80::1/128:80": "is link-local",
    "10.0.0.0/8": "has no port", "10.0.0.0/8:0": "has no port",
    "10.0.0.0/8:65536": "has no port", "10.1.0.0/8:443": "has host bits set", 
    "store.internal:443": "is not a range", "::1:443": "is of IPv6",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_an_egress_that_is_none_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(SpecError, match=rf'--egress .*{BAD[text]}.*found "{text}".*getent hosts'):
        options_of("job", egress=[text])


def test_every_file_says_where_its_image_comes_from() -> None:
    for target, place in TARGETS.items():
        said = head(text_of(target))
        for image in (PUSHED, PUSHED.replace(":0.1.0", f"@sha256:{'0' * 64}")):
            words = head(text_of(target, image=image))
            assert f"Image: {image}, pulled" in words
            assert ("NAME@sha256:DIGEST does not" in words) == (image == PUSHED)
            assert image_note(target, options_of(target, image=image)) == ""
        if place.finds_image == "nowhere":
            with pytest.raises(
                SpecError, match=rf"cannot reach an image of this machine.*{IMAGE}.*docker build -t {IMAGE} \."
            ):
                text_of(target, image=IMAGE)
            continue
        assert f"Image: {IMAGE}, " in said
        assert f"`{'podman' if target == 'podman' else 'docker'} build -t {IMAGE} .`" in said
        assert (
            ("a cluster cannot reach it there" in said)
            == bool(image_note(target, options_of(target)))
            == (place.finds_image == "loaded")
        )
    assert "pull_policy" not in text_of("compose", image=PUSHED)
    assert yaml.safe_load(text_of("compose"))["services"]["tunejob"]["pull_policy"] == "never"
    assert "--pull" not in text_of("docker", image=PUSHED)


PARTLY: dict[str, tuple[bytes, str, str]] = {
    "trackers": (b'"tracking": ["tensorboard", "wandb", "mlflow"], "evaluation": {', "/tracking", "wandb, mlflow"),
    "benchmarks": (b'"evaluation": {"tasks": ["arc_easy", "gsm8k"], ', "/evaluation/tasks", "arc_easy, gsm8k"),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("part", PARTLY)
def test_what_the_plain_image_lacks_is_refused_before_a_machine_is_paid_for(target: str, part: str) -> None:
    words, pointer, found = PARTLY[part]
    raw = RAW.replace(b'"evaluation": {', words, 1)
    with pytest.raises(InputError) as refused:
        rendered(raw, target)
    (fault,) = refused.value.faults
    assert (refused.value.exit_code, fault.where, fault.found) == (11, pointer, found)
    argument = f"--build-arg {part.upper()}=1"
    assert argument in (fault.expected or "")
    assert f"--image-with {part}" in (fault.hint or "")
    (other,) = PARTLY.keys() - {part}
    with pytest.raises(InputError):
        rendered(raw, target, image_with=[other])
    assert rendered(raw, target, image=PUSHED, image_with=[part])
    if TARGETS[target].finds_image != "nowhere":
        assert f"build {argument} -t {IMAGE} .`" in head(rendered(raw, target, image=IMAGE, image_with=[part]))


@pytest.mark.parametrize("target", TARGETS)
def test_vllm_is_in_no_image_but_ones_own(target: str) -> None:
    spec = json.loads((ROOT / "schemas" / "examples" / "grpo-llama32-1b.json").read_bytes())
    spec["training"]["grpo"]["use_vllm"] = True
    raw = json.dumps(spec).encode()
    with pytest.raises(InputError) as refused:
        rendered(raw, target, image=PUSHED, image_with=list(PARTLY))
    (fault,) = refused.value.faults
    assert (refused.value.exit_code, fault.where) == (11, "/training/grpo/use_vllm")
    assert "--image-with vllm" in (fault.hint or "")
    assert rendered(raw, target, image=PUSHED, image_with=["vllm"])


@pytest.mark.parametrize("target", ["job", "kueue", "jobset", "trainjob"])
def test_the_file_has_the_commands_that_make_its_secrets(target: str) -> None:
    judged = b'"tracking": ["wandb"], "evaluation": {"judge": {"model": "m"}, '
    raw = RAW.replace(b'"evaluation": {', judged, 1)
    text = rendered(raw, target, namespace="tuning", pull_secret="login", image=PUSHED, image_with=["trackers"])
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#   kubectl")]
    made = {words[6]: words for words in (shlex.split(line, comments=True) for line in lines)}
    keys = {
        name: [word.split("=")[1] for word in words if word.startswith("--from-literal")]
        for name, words in made.items()
    }
    assert keys == {
        "tunejob-s3": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        "tunejob-hub": ["HF_TOKEN", "WANDB_API_KEY", *JUDGE],
        "login": [],
    }
    assert "--docker-server=registry.example.com" in made["login"]
    assert "--docker-server=REGISTRY " in rendered(raw, target, pull_secret="login", image_with=["trackers"])
    shipped = yaml.safe_load((ROOT / "k8s" / "base" / "job.yaml").read_text())["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert {source["secretRef"]["name"] for source in shipped["envFrom"]} == keys.keys() - {"login"}


PIP = """#!/bin/sh
[ "$*" = "install --quiet --no-deps --require-hashes -r locks/light.txt" ] || exit
cat locks/light.txt > "$RUNNER_TEMP/installed"
"""
VENV = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
mkdir -p "$3/bin" && cp "$RUNNER_TEMP/pip" "$3/bin/pip" && ln -s {python} "$3/bin/python"
"""


def test_the_workflow_checks_the_spec_with_the_light_install(tmp_path: Path) -> None:
    """The steps as the runner does them: git really fetches a commit, and that commit's command validates."""
    clone, runner = tmp_path / "clone", tmp_path / "runner"
    for folder in ("job", "schemas", "locks"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    runner.mkdir()
    for name, text in (("pip", PIP), ("python3", VENV.format(python=sys.executable))):
        (runner / name).write_text(text)
        (runner / name).chmod(0o755)
    config = ["-c", "user.name=a", "-c", "user.email=a", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run(["git", *config, *arguments], cwd=clone, check=True)
    given = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{clone}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://git.example.com/tunejob",
    }
    environment = {
        **os.environ,
        **given,
        "RUNNER_TEMP": str(runner),
        "PATH": f"{runner}:{os.environ['PATH']}",
        "PYTHONPATH": "",
    }
    workflow = yaml.safe_load(rendered(RAW, "actions", source="https://git.example.com/tunejob@main"))
    for name in ("The tunejob command, without torch", "Check the spec"):
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", step(workflow, name)],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    assert '"event": "valid"' in done.stdout
    assert (runner / "installed").read_text() == (ROOT / "locks" / "light.txt").read_text()
    assert "docker" not in yaml.safe_dump(workflow["jobs"]["validate"])


def test_the_workflow_follows_with_the_light_install_and_keeps_the_code(tmp_path: Path) -> None:
    workflow = yaml.safe_load(rendered(RAW, "actions", namespace="tuning"))
    follow = step(workflow, "Follow it to its end")
    summary = str(tmp_path / "summary")
    code, seen, _ = ran(
        follow, tmp_path, "python", RUNNER_TEMP=str(tmp_path), GITHUB_STEP_SUMMARY=summary, AWS_SESSION_TOKEN=""
    )
    name = objects(rendered(RAW, "job"))["Job"]["metadata"]["name"]
    assert (code, seen) == (14, ["-m", "job", "wait", name, "--namespace", "tuning", "--summary", summary])
    assert follow.index("::stop-commands::") < follow.index(" wait ") < follow.index('echo "::$resume::"')


def test_the_workflow_says_what_it_takes_the_command_from() -> None:
    with pytest.raises(
        SpecError,
        match=r"needs --source, .*no release is out yet; expected https://HOST/PATH@COMMIT.*git rev-parse HEAD",
    ):
        rendered(RAW, "actions", source=None)
