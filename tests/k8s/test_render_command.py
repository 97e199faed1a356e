"""What `tunejob render` writes is what the manifests say, and keeps the same rules."""

from __future__ import annotations

import base64
import json
import re
import subprocess

import pytest
import yaml

from job.errors import SpecError
from job.preview.image_parts import PARTS
from job.render import render
from job.render.image import IMAGE
from job.render.options import RenderArguments, RenderOptions, options
from job.render.pod import JOB, shipped
from tests.k8s import rules
from tests.k8s.render import K8S, ROOT, TOOLS, Document, only
from tests.k8s.test_manifests import schema_faults

SPEC = (K8S / "base" / "spec.json").read_bytes()
TARGETS = ("job", "kueue", "jobset", "trainjob")
EXAMPLES = [
    path
    for path in sorted((ROOT / "schemas" / "examples").glob("*.json"))
    if "s3://" in json.loads(path.read_bytes())["output"]["uri"]
]


ALL = RenderArguments(
    image="registry.example.com/tunejob:0.1.0", namespace="tuning", pull_secret="login", service_account="trainer",
    annotation=["eks.amazonaws.com/role-arn=arn:aws:iam::111122223333:role/tunejob"],
    egress=["10.0.0.0/8:443", "::/0:8333"], cpu=5,
)  # fmt: skip


def rendered(target: str, spec: bytes = SPEC, chosen: RenderOptions | None = None) -> list[Document]:
    return list(yaml.safe_load_all(render(spec, target, chosen or RenderOptions(image_with=tuple(PARTS)))))


def renamed(documents: list[Document]) -> dict[tuple[str, str], Document]:
    """By kind and name, the name of the spec being the manifests' own before its hash."""
    (name,) = (document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap")
    same = yaml.safe_load(yaml.safe_dump(documents).replace(name, "tunejob-spec"))
    return {(document["kind"], document["metadata"]["name"]): document for document in same}


@pytest.mark.parametrize(("target", "shipped"), [("job", "base"), ("jobset", "overlays/jobset")])
def test_the_command_writes_what_the_manifests_say(
    manifests: dict[str, list[Document]], target: str, shipped: str
) -> None:
    assert renamed(rendered(target)) == renamed(manifests[shipped])


def test_the_command_writes_the_runtime_of_the_manifests(manifests: dict[str, list[Document]]) -> None:
    shipped = manifests["overlays/trainer"]
    assert only(rendered("trainjob"), "ClusterTrainingRuntime") == only(shipped, "ClusterTrainingRuntime")
    ours, theirs = (
        renamed(documents)["TrainJob", "tunejob-spec"]["spec"] for documents in (rendered("trainjob"), shipped)
    )
    assert ours["runtimeRef"] == theirs["runtimeRef"]
    assert ours["trainer"].items() >= theirs["trainer"].items()


def test_what_the_command_writes_keeps_the_rules_and_the_schemas() -> None:
    written = {f"{path.stem} {target}": rendered(target, path.read_bytes()) for path in EXAMPLES for target in TARGETS}
    written |= {f"all options {target}": rendered(target, chosen=options(ALL)) for target in TARGETS}
    assert len(written) >= 5 * 4
    assert {name: rules.faults(documents) for name, documents in written.items() if rules.faults(documents)} == {}
    assert schema_faults(written) == []


@pytest.mark.parametrize("target", ["jobset", "trainjob"])
def test_two_machines_keep_the_rules_and_the_schemas(target: str) -> None:
    """Each pod knows which it is and where they meet; they have names, and may talk to each other alone."""
    documents = rendered(target, json.dumps(json.loads(SPEC) | {"resources": {"gpus": 2, "nodes": 2}}).encode())
    assert rules.faults(documents) == []
    assert schema_faults({target: documents}) == []
    kind = "JobSet" if target == "jobset" else "TrainJob"
    work, name = only(documents, kind), only(documents, "ConfigMap")["metadata"]["name"]
    if target == "jobset":
        (member,) = work["spec"]["replicatedJobs"]
        job, network, called = (
            member["template"]["spec"],
            work["spec"]["network"],
            f"{name}-{member['name']}-0-0.{name}:29400",
        )
        assert (job["parallelism"], job["completions"], job["completionMode"]) == (2, 2, "Indexed")
        variables = job["template"]["spec"]["containers"][0]["env"]
    else:
        runtime = only(documents, "ClusterTrainingRuntime")
        assert work["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"] == "tunejob-machines"
        network, called, variables = (
            runtime["spec"]["template"]["spec"]["network"],
            f"{name}-node-0-0.{name}:29400",
            work["spec"]["trainer"]["env"],
        )
        assert work["spec"]["trainer"]["numNodes"] == 2
        (member,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        job = member["template"]["spec"]
    assert "backoffLimit" not in job, "the pods of one try would use it up together"
    assert (job["backoffLimitPerIndex"], job["maxFailedIndexes"]) == (shipped(JOB)["spec"]["backoffLimit"], 0)
    assert network == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    known = {variable["name"]: variable for variable in variables}
    assert known["TUNEJOB_MEETING"]["value"] == called
    assert known["TUNEJOB_MACHINE"]["valueFrom"]["fieldRef"]["fieldPath"].endswith(
        "['batch.kubernetes.io/job-completion-index']"
    )


def test_several_machines_are_for_those_that_start_them() -> None:
    with pytest.raises(SpecError, match="starts one machine"):
        rendered("job", json.dumps(json.loads(SPEC) | {"resources": {"nodes": 2}}).encode())


def test_two_specs_are_two_jobs() -> None:
    other = json.dumps(json.loads(SPEC) | {"name": "another"}).encode()
    assert only(rendered("job"), "Job")["metadata"]["name"] != only(rendered("job", other), "Job")["metadata"]["name"]


def test_kubectl_takes_the_commands_that_the_file_has() -> None:
    """As they are written there, with nothing sent to a cluster."""
    text = render(SPEC, "job", options(ALL))
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#   kubectl")]
    script = "\n".join(line.replace(" create ", " create --dry-run=client -o json ") for line in lines)
    environment = {
        "PATH": f"{TOOLS}:/usr/bin:/bin",
        "AWS_ACCESS_KEY_ID": "a b",
        "AWS_SECRET_ACCESS_KEY": "$c",
        "HF_TOKEN": "d",
    }
    done = subprocess.run(["sh", "-euc", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {
        secret["metadata"]["name"]: secret
        for secret in map(json.loads, done.stdout.replace("}\n{", "}\0{").split("\0"))
    }
    assert {name: set(secret["data"]) for name, secret in made.items()} == {
        "tunejob-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
        "tunejob-hub": {"HF_TOKEN"},
        "login": {".dockerconfigjson"},
    }
    assert base64.b64decode(made["tunejob-s3"]["data"]["AWS_ACCESS_KEY_ID"]) == b"a b"
    assert {secret["metadata"]["namespace"] for secret in made.values()} == {"tuning"}


def test_the_pages_build_the_image_that_the_files_name() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("job/**/*.md"), *ROOT.glob("k8s/*.md"), ROOT / "Dockerfile"]
    assert {name for page in pages for name in re.findall(r"docker build -t (\S+) \.", page.read_text("utf-8"))} == {
        IMAGE,
        '"$IMAGE"',
    }
