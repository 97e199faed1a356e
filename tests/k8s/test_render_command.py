"""What `tunejob render` writes is what the manifests say, and keeps the same rules."""

from __future__ import annotations

import json

import pytest
import yaml

from job.render import render
from job.render.options import Options
from tests.k8s import rules
from tests.k8s.render import K8S, ROOT, Document, only
from tests.k8s.test_manifests import schema_faults

SPEC = (K8S / "base" / "spec.json").read_bytes()
TARGETS = ("job", "kueue", "jobset", "trainjob")
EXAMPLES = [
    path for path in sorted((ROOT / "schemas" / "examples").glob("*.json")) if "s3://" in json.loads(path.read_bytes())["output"]["uri"]
]


def rendered(target: str, spec: bytes = SPEC) -> list[Document]:
    return list(yaml.safe_load_all(render(spec, target, Options())))


def renamed(documents: list[Document]) -> dict[tuple[str, str], Document]:
    """By kind and name, the name of the spec being the manifests' own before its hash."""
    (name,) = (document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap")
    same = yaml.safe_load(yaml.safe_dump(documents).replace(name, "tunejob-spec"))
    return {(document["kind"], document["metadata"]["name"]): document for document in same}


@pytest.mark.parametrize(("target", "shipped"), [("job", "base"), ("jobset", "overlays/jobset")])
def test_the_command_writes_what_the_manifests_say(manifests: dict[str, list[Document]], target: str, shipped: str) -> None:
    assert renamed(rendered(target)) == renamed(manifests[shipped])


def test_the_command_writes_the_runtime_of_the_manifests(manifests: dict[str, list[Document]]) -> None:
    shipped = manifests["overlays/trainer"]
    assert only(rendered("trainjob"), "ClusterTrainingRuntime") == only(shipped, "ClusterTrainingRuntime")
    ours, theirs = (renamed(documents)["TrainJob", "tunejob-spec"]["spec"] for documents in (rendered("trainjob"), shipped))
    assert ours["runtimeRef"] == theirs["runtimeRef"]
    assert ours["trainer"].items() >= theirs["trainer"].items()


def test_what_the_command_writes_keeps_the_rules_and_the_schemas() -> None:
    written = {f"{path.stem} {target}": rendered(target, path.read_bytes()) for path in EXAMPLES for target in TARGETS}
    assert len(written) >= 4 * 4
    assert {name: rules.faults(documents) for name, documents in written.items() if rules.faults(documents)} == {}
    assert schema_faults(written) == []


def test_two_specs_are_two_jobs() -> None:
    other = json.dumps(json.loads(SPEC) | {"name": "another"}).encode()
    assert only(rendered("job"), "Job")["metadata"]["name"] != only(rendered("job", other), "Job")["metadata"]["name"]
