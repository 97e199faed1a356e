"""Objects for Kubernetes: the same as the shipped manifests, with the resources of the spec."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.errors import TREE, SpecError
from job.render.pod import JOB, JOBSET, RUNTIME, TRAINJOB, retryable_codes
from job.render.pod import shipped as shipped_file
from tests.renders import LAYOUTS, objects, rendered

BASE = Path(__file__).parents[2] / "k8s" / "base"
RAW = LAYOUTS["lines"]
SMALL = (BASE / "spec.json").read_bytes()
DIGEST = hashlib.sha256(SMALL).hexdigest()[:10]


def shipped(name: str) -> Any:
    return yaml.safe_load((BASE / f"{name}.yaml").read_text("utf-8"))


def test_what_is_patched_is_in_the_package_and_in_the_image() -> None:
    """In a checkout it is beside the package, where a wheel would lack it."""
    root = BASE.parents[1]
    globs = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]["job.k8s"]
    for path in (JOB, JOBSET, RUNTIME, TRAINJOB, "base/serviceaccount.yaml", "base/networkpolicy.yaml"):
        assert shipped_file(path)["kind"]
        assert any(Path(path).match(glob) for glob in globs)
    assert "!k8s" in (root / ".dockerignore").read_text("utf-8").splitlines()


def test_the_job_is_the_shipped_one() -> None:
    job = objects(rendered(SMALL, "job", name="tunejob-spec"))["Job"]
    assert job["metadata"]["name"] == f"tunejob-spec-{DIGEST}"
    job["metadata"]["name"] = "tunejob-spec"  # kustomize appends a hash of its own
    job["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"] = "tunejob-spec"
    assert job == shipped("job")


def test_what_it_needs_is_the_shipped_too() -> None:
    parts = objects(rendered(SMALL, "job"))
    assert parts["ServiceAccount"] == shipped("serviceaccount")
    assert parts["NetworkPolicy"] == shipped("networkpolicy")


def test_the_policy_knows_every_exit_code() -> None:
    rules = objects(rendered(RAW, "job"))["Job"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "Ignore"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[1]["onExitCodes"]["values"] == [10, 11, 12, 13, 14]
    assert rules[2]["onExitCodes"]["values"] == [30]
    assert sorted([*rules[1]["onExitCodes"]["values"], *retryable_codes()]) == sorted(kind.exit_code for kind in TREE)


@pytest.mark.parametrize("target", ["job", "kueue", "jobset", "trainjob"])
def test_all_parts_carry_one_name_and_the_namespace(target: str) -> None:
    parts = objects(rendered(RAW, target, name="mine", namespace="tuning"))
    work = parts[{"job": "Job", "kueue": "Job", "jobset": "JobSet", "trainjob": "TrainJob"}[target]]
    name = f"mine-{hashlib.sha256(RAW).hexdigest()[:10]}"
    assert work["metadata"]["name"] == parts["ConfigMap"]["metadata"]["name"] == name
    assert parts["ConfigMap"]["immutable"] is True
    assert name in yaml.safe_dump(work["spec"])
    spaces = {kind: part["metadata"].get("namespace") for kind, part in parts.items()}
    assert spaces.pop("ClusterTrainingRuntime", None) is None
    assert set(spaces.values()) == {"tuning"}


def test_another_spec_is_another_job_and_the_same_the_same() -> None:
    first, again, other = (objects(rendered(raw, "job"))["Job"] for raw in (RAW, RAW, LAYOUTS["one line"]))
    assert first == again
    assert first["metadata"]["name"] != other["metadata"]["name"]


def test_the_longest_name_leaves_room_for_pods() -> None:
    raw = RAW.replace(b'"name": "small"', b'"name": "' + b"x" * 63 + b'"')
    name = objects(rendered(raw, "jobset"))["JobSet"]["metadata"]["name"]
    assert len(f"{name}-node-0-0-abcde") <= 63


@pytest.mark.parametrize("target", ["job", "jobset", "trainjob"])
def test_a_name_that_begins_with_a_digit_gets_a_letter(target: str) -> None:
    """Valid in a spec and as a Job's, but not as a JobSet's or a TrainJob's."""
    parts = objects(rendered(RAW.replace(b'"name": "small"', b'"name": "8b-run"'), target))
    work = parts[{"job": "Job", "jobset": "JobSet", "trainjob": "TrainJob"}[target]]
    assert work["metadata"]["name"] == parts["ConfigMap"]["metadata"]["name"]
    assert work["metadata"]["name"].startswith("t-8b-run-")
    assert objects(rendered(RAW, target, name="8b"))["ConfigMap"]["metadata"]["name"].startswith("t-8b-")


def test_what_the_webhooks_ask_for() -> None:
    (member,) = objects(rendered(RAW, "jobset"))["JobSet"]["spec"]["replicatedJobs"]
    assert member["template"]["spec"]["completionMode"] == "Indexed"
    (patch,) = objects(rendered(RAW, "trainjob"))["TrainJob"]["spec"]["runtimePatches"]
    assert "." in patch["manager"].partition("/")[0]
    assert patch["manager"].partition("/")[2]


def test_kueue_gets_a_label_and_nothing_that_stops_a_running_job() -> None:
    plain, queued = (
        objects(rendered(RAW, target, **given))["Job"] for target, given in (("job", {}), ("kueue", {"queue": "gpus"}))
    )
    assert queued["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name") == "gpus"
    assert queued == plain


def test_a_jobset_holds_the_job() -> None:
    job = objects(rendered(RAW, "job"))["Job"]["spec"]
    jobset = objects(rendered(RAW, "jobset"))["JobSet"]["spec"]
    (member,) = jobset["replicatedJobs"]
    assert member["replicas"] == 1
    whole = job | {"completionMode": "Indexed"}
    assert member["template"]["spec"] | {"ttlSecondsAfterFinished": jobset["ttlSecondsAfterFinished"]} == whole
    assert jobset["failurePolicy"] == {"maxRestarts": 0}


def test_a_trainjob_and_its_runtime_make_up_the_job() -> None:
    job = objects(rendered(RAW, "job", image="registry/image:1"))["Job"]["spec"]["template"]["spec"]
    parts = objects(rendered(RAW, "trainjob", image="registry/image:1"))
    train = parts["TrainJob"]["spec"]
    (node,) = parts["ClusterTrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert train["runtimeRef"]["name"] == parts["ClusterTrainingRuntime"]["metadata"]["name"] == "tunejob"
    assert train["trainer"]["image"] == "registry/image:1"
    assert train["trainer"]["args"] == job["containers"][0]["args"]
    assert train["trainer"]["resourcesPerNode"] == job["containers"][0]["resources"]
    (patch,) = train["runtimePatches"]
    own = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in [*pod["volumes"], *own["volumes"]]}
    assert volumes == {volume["name"]: volume for volume in job["volumes"]}
    assert "spec" not in {volume["name"] for volume in pod["volumes"]}
    containers = {
        rule["onExitCodes"]["containerName"] for rule in node["template"]["spec"]["podFailurePolicy"]["rules"][1:]
    }
    assert containers == {pod["containers"][0]["name"]} == {"node"}


def test_a_runtime_is_the_same_for_every_spec() -> None:
    first, other = (objects(rendered(raw, "trainjob"))["ClusterTrainingRuntime"] for raw in (RAW, SMALL))
    assert first == other


@pytest.mark.parametrize("target", ["job", "kueue", "jobset", "trainjob", "skypilot", "dstack", "compose", "actions"])
def test_paths_of_this_machine_are_refused_all_at_once(target: str) -> None:
    demo = (BASE.parents[1] / "schemas" / "examples" / "demo.json").read_bytes()
    with pytest.raises(SpecError) as refused:
        rendered(demo, target)
    pointers = [fault.where for fault in refused.value.faults]
    assert pointers == ["/model/source", "/data/train/0/source", "/data/held_out/sources/0/source", "/output/uri"]


def test_a_number_of_gpus_that_is_not_the_specs_is_refused() -> None:
    for gpus in (0, -1, 9):
        with pytest.raises(SpecError, match="1 to 8 GPUs"):
            rendered(RAW, "job", gpus=gpus)
    with pytest.raises(SpecError, match="the spec wants another number of GPUs"):
        rendered(RAW, "job", gpus=2)
    every = with_gpus("all")
    with pytest.raises(SpecError, match="--gpus COUNT"):
        rendered(every, "job")
    assert "${TUNEJOB_GPUS:-all}" in rendered(every, "docker")
    assert held(objects(rendered(every, "job", gpus=4))["Job"]) == held(objects(rendered(with_gpus(4), "job"))["Job"])


def test_gpus_come_with_what_their_processes_need() -> None:
    """Cards, cores, memory and shared memory; a container of one has what it had."""
    one, two = (objects(rendered(raw, "job"))["Job"] for raw in (RAW, with_gpus(2)))
    assert [held(job)["nvidia.com/gpu"] for job in (one, two)] == ["1", "2"]
    assert int(held(two)["cpu"]) - int(held(one)["cpu"]) == 2
    assert gibibytes(held(two)["memory"]) > gibibytes(held(one)["memory"])
    sizes = [
        next(v["emptyDir"]["sizeLimit"] for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "dshm")
        for job in (one, two)
    ]
    assert sizes == ["2Gi", "3Gi"]
    assert "# Shared memory: 3 GiB" in rendered(with_gpus(2), "job")
    assert "Shared memory" not in rendered(RAW, "job")


def with_gpus(count: int | str) -> bytes:
    return json.dumps(json.loads(RAW) | {"resources": {"gpus": count}}).encode()


def held(job: dict[str, Any]) -> dict[str, str]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests["nvidia.com/gpu"] == limits["nvidia.com/gpu"]
    return requests


def gibibytes(size: str) -> int:
    return int(size.removesuffix("Gi"))


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("docker", "--gpus '${TUNEJOB_GPUS:-2}'"),
        ("podman", "--device nvidia.com/gpu=all"),
        ("compose", "count: 2"),
        *((target, "nvidia.com/gpu: '2'") for target in ("kueue", "jobset", "trainjob", "actions")),
        ("skypilot", "H200: 2"),
        ("dstack", "count: 2"),
    ],
)
def test_every_target_asks_for_them(target: str, asked: str) -> None:
    assert asked in rendered(with_gpus(2), target).replace('"', "'")


def test_every_wrong_option_is_reported_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        rendered(RAW, "job", image="a b", name="A", queue="", parameters="many", gpus=9)
    assert len(refused.value.faults) == 5


def test_a_large_spec_is_said_to_need_the_server_side() -> None:
    raw = RAW.replace(b'"name"', b" " * 300_000 + b'"name"')
    assert "kubectl apply --server-side" in rendered(raw, "job").splitlines()[0]
    assert "--server-side" not in rendered(RAW, "job").splitlines()[0]
