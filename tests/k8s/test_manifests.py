"""Every overlay and every component, as they would be sent to a cluster."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from job import __version__
from job.host.pulse import HEARTBEAT
from job.spec import parse_spec
from tests.k8s import rules
from tests.k8s.pods import pods
from tests.k8s.render import K8S, ROOT, TOOLS, Document, names, only, overlay, render

Manifests = dict[str, list[Document]]
OLDEST, NEWEST = "1.31", "1.37"  # podFailurePolicy is stable since 1.31
SHIPPED = [
    "base",
    *(f"overlays/{name}" for name in names("overlays")),
    *(f"components/{name}" for name in names("components")),
]


def schema_faults(manifests: Manifests) -> list[str]:
    command = [TOOLS / "python", ROOT / "tests" / "k8s" / "check_schemas.py", OLDEST, NEWEST]
    done = subprocess.run(command, input=json.dumps(manifests), capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_everything_fits_the_schemas_of_the_oldest_and_the_newest_kubernetes(manifests: Manifests) -> None:
    assert list(manifests) == SHIPPED
    assert schema_faults(manifests) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_it_keeps_the_rules(manifests: Manifests, name: str) -> None:
    assert rules.faults(manifests[name]) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_it_runs_the_shipped_version_on_a_spec_that_holds(manifests: Manifests, name: str) -> None:
    specs = [document["data"]["spec.json"] for document in manifests[name] if "spec.json" in document.get("data", {})]
    assert [parse_spec(spec.encode()).version for spec in specs] == [1]
    ours = {container["image"] for pod in pods(manifests[name]) if pod.job for container in pod.containers}
    assert {image.rpartition(":")[2] for image in ours} == {__version__}


@pytest.mark.parametrize("folder", ["base", "overlays/example"])
def test_a_shipped_spec_is_one_of_the_examples(folder: str) -> None:
    spec = (K8S / folder / "spec.json").read_bytes()
    example = ROOT / "schemas" / "examples" / f"{json.loads(spec)['name']}.json"
    assert spec == example.read_bytes()


def test_the_probe_tells_a_run_at_work_from_a_dead_one(manifests: Manifests, tmp_path: Path) -> None:
    """By the command itself, at a heartbeat that is new, old, and not there."""
    (container,) = (pod.tune for pod in pods(manifests["base"]) if pod.job)
    beat = tmp_path / "beat"

    def alive() -> bool:
        command = container["livenessProbe"]["exec"]["command"]
        return (
            subprocess.run(
                command, env={**os.environ, HEARTBEAT: str(beat)}, stderr=subprocess.DEVNULL, check=False
            ).returncode
            == 0
        )

    assert not alive()
    beat.write_text("{}")
    assert alive()
    for minutes, lives in ((10, True), (20, False)):
        os.utime(beat, (time.time() - 60 * minutes,) * 2)
        assert alive() == lives


IN_MEMBER = ("spec", "replicatedJobs", 0, "template", "spec")
IN_RUNTIME = ("spec", "template", *IN_MEMBER)
MISSPELT: list[tuple[str, str, tuple[Any, ...]]] = [
    ("base", "Job", ("spec", "podFailurePolicies")),
    ("base", "Job", ("spec", "template", "spec", "containers", 0, "ressources")),
    ("base", "NetworkPolicy", ("spec", "outgress")),
    ("base", "Job", ("spec", "backoffLimit")),  # "1" is not a number
    ("base", "ServiceAccount", ("kind",)),
    ("overlays/jobset", "JobSet", ("spec", "failurePolicies")),
    ("overlays/jobset", "JobSet", (*IN_MEMBER, "template", "spec", "containers", 0, "ressources")),
    ("overlays/trainer", "TrainJob", ("spec", "trainer", "nodes")),
    ("overlays/trainer", "TrainJob", ("spec", "trainer", "numNodes")),
    ("overlays/trainer", "ClusterTrainingRuntime", (*IN_RUNTIME, "template", "spec", "volume")),
    ("overlays/kueue-spot", "ClusterQueue", ("spec", "cohort")),  # v1beta1's
    ("overlays/kueue-spot", "LocalQueue", ("kind",)),
]


def test_the_schemas_refuse_misspelt_fields_wrong_types_and_unknown_kinds(manifests: Manifests) -> None:
    broken = {}
    for name, kind, path in MISSPELT:
        document = copy.deepcopy(only(manifests[name], kind))
        place = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = "1"
        broken[f"{kind}/{'/'.join(map(str, path))}"] = [document]
    found = schema_faults(broken)
    for name in broken:
        said = {fault.split("Kubernetes ")[1].split(":")[0] for fault in found if fault.startswith(f"{name}: ")}
        assert said == {OLDEST, NEWEST}, f"{name} was let through"


def test_the_readme_names_every_component_and_overlay() -> None:
    text = (K8S / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)) == names("components")
    assert set(re.findall(r"`([a-z-]+)`", text.split("Overlays: ")[1].split("All but")[0])) == set(names("overlays"))


def test_what_the_readme_would_have_written_into_an_overlay_is_text(tmp_path: Any) -> None:
    """YAML takes -2 for a number, and kustomize refuses it."""
    (suffix,) = re.findall(r"`(nameSuffix: [^`]*)`", (K8S / "README.md").read_text("utf-8"))
    job = only(render(overlay(tmp_path, **yaml.safe_load(suffix))), "Job")
    assert job["metadata"]["name"].startswith("tunejob-spec-2-")


# ---------------------------------------------------------------------------------------------- what apply does


def test_another_spec_is_another_job_and_the_same_spec_is_the_same(tmp_path: Any) -> None:
    spec = {"name": "tunejob-spec", "behavior": "merge", "literals": ["spec.json={}"]}
    first, again = render(K8S / "base"), render(K8S / "base")
    other = render(overlay(tmp_path, configMapGenerator=[spec]))
    assert first == again
    assert only(first, "Job")["metadata"]["name"] != only(other, "Job")["metadata"]["name"]
    assert only(other, "Job")["metadata"]["name"] == only(other, "ConfigMap")["metadata"]["name"]


@pytest.mark.parametrize("form", ["jobset", "trainer", "scheduled"])
def test_other_kinds_carry_the_job_of_the_other_components(tmp_path: Any, form: str) -> None:
    chosen = ("spot", "tracking", "model-cache", "kueue")
    (job,) = (pod for pod in pods(render(overlay(tmp_path / "job", *chosen))) if pod.job)
    documents = render(overlay(tmp_path / form, *chosen, form))
    (made,) = (pod for pod in pods(documents) if pod.job)
    assert not [document for document in documents if document["kind"] == "Job"]
    assert made.labels == job.labels
    assert made.tune["envFrom"] == job.tune["envFrom"]
    assert made.tune["resources"] == job.tune["resources"]
    assert made.spec["affinity"] == job.spec["affinity"]
    assert made.job is not None
    assert job.job is not None
    assert [made.job[key] for key in ("backoffLimit", "activeDeadlineSeconds")] == [
        job.job[key] for key in ("backoffLimit", "activeDeadlineSeconds")
    ]
    assert "kueue.x-k8s.io/queue-name" in yaml.safe_dump(
        [d for d in documents if d["kind"] in ("JobSet", "TrainJob", "CronJob")]
    )


def test_all_components_go_together(tmp_path: Any) -> None:
    apart = {
        "jobset",
        "trainer",
        "dev-object-store",
        "scheduled",
        "serve-vllm",
    }  # two more forms, another store, what another brings along
    documents = render(overlay(tmp_path, *(set(names("components")) - apart)))
    assert rules.faults(documents) == []
    assert schema_faults({"all": documents}) == []


def test_air_gapped_leaves_no_public_address(manifests: Manifests) -> None:
    for rule in only(manifests["overlays/air-gapped"], "NetworkPolicy")["spec"]["egress"]:
        assert all(peer.get("ipBlock", {}).get("cidr") not in ("0.0.0.0/0", "::/0") for peer in rule["to"])
    spec = only(manifests["overlays/air-gapped"], "ConfigMap")["data"]["spec.json"]
    assert "hf://" not in spec
    assert spec.count("s3://") == 3
