"""The pod of the rendered base, really run by `podman kube play`: SeaweedFS, and the image that TUNEJOB_IMAGE names.

Changed for this machine: no GPU is asked for (TUNEJOB_DEVICE=cpu), the image is the local one, the pod shares the
host's network to reach the store on loopback, and emptyDirs are folders of the host, for their contents are looked at.
What podman does not do: Jobs, fsGroup, NetworkPolicies, limits of emptyDirs, the termination message (a file takes its
place).
"""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.ledger.manifest import verify
from job.store import open_store
from tests.image.container import CONTAINERS_CONF
from tests.k8s.pods import pods
from tests.k8s.render import Document, overlay, render
from tests.servers import S3Server
from tests.tiny import tiny_dir

IMAGE = os.environ.get("TUNEJOB_IMAGE", "")
pytestmark = [
    pytest.mark.skipif(
        not IMAGE or not shutil.which("podman"),
        reason="TUNEJOB_IMAGE names no image (python -m tests.image.build), or no podman",
    ),
    pytest.mark.timeout(1800),
]
ROWS = [
    {"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": word}]}
    for word in ("one", "two", "three", "four")
]


@dataclass
class Ended:
    exit_code: int
    said: str
    last_words: str
    inspected: Document


def spec(bucket: str) -> Document:
    return {
        "version": 1,
        "name": "played",
        "model": {"source": f"s3://{bucket}/model", "max_seq_length": 64},
        "data": {"train": [{"source": f"s3://{bucket}/rows.jsonl", "format": "messages"}], "chat_template": "chatml"},
        "training": {"max_steps": 2, "batch_size": 2, "gradient_accumulation_steps": 1},
        "output": {"uri": f"s3://{bucket}/out"},
    }


def rendered(folder: Path, s3: S3Server, document: Any) -> list[Document]:
    """The base for a store of one's own with its own certificate authority."""
    endpoint = {"name": "AWS_ENDPOINT_URL", "value": s3.https}
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "tunejob", "env": [endpoint]}]}}}}
    head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "tunejob-spec"}}
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(document))
    shutil.copy(s3.ca, folder / "ca.crt")
    generated = [
        {"name": "tunejob-spec", "behavior": "merge", "files": ["spec.json"]},
        {"name": "tunejob-ca", "files": ["ca.crt"], "options": {"disableNameSuffixHash": True}},
    ]
    patches = [{"target": {"kind": "Job"}, "patch": yaml.safe_dump(head | patch)}]
    return render(overlay(folder, "s3-compatible", "custom-ca", configMapGenerator=generated, patches=patches))


def playable(documents: list[Document], name: str, folder: Path) -> list[Document]:
    """ConfigMaps and the Job's pod, as podman can play them."""
    (pod,) = (pod for pod in pods(documents) if pod.job)
    plain = copy.deepcopy(pod.spec)
    (container,) = plain["containers"]
    container["image"] = IMAGE
    container["env"].append({"name": "TUNEJOB_DEVICE", "value": "cpu"})
    for side in ("requests", "limits"):
        del container["resources"][side]["nvidia.com/gpu"]
    for volume in plain["volumes"]:
        if "emptyDir" in volume:
            path = folder / volume["name"]
            path.mkdir()
            path.chmod(0o777)
            volume.pop("emptyDir")
            volume["hostPath"] = {"path": str(path), "type": "Directory"}
    words = folder / "termination-log"
    words.touch()
    words.chmod(0o666)
    container["volumeMounts"].append({"name": "words", "mountPath": container["terminationMessagePath"]})
    plain["volumes"].append({"name": "words", "hostPath": {"path": str(words), "type": "File"}})
    container["envFrom"][0]["secretRef"]["name"] = name
    configs = [document for document in documents if document["kind"] == "ConfigMap"]
    return [
        *configs,
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": pod.labels}, "spec": plain},
    ]


def secret(s3: S3Server) -> str:
    """What podman 4.3 takes as the data of a Kubernetes Secret."""
    keys = {
        name: value
        for name, value in s3.environment().items()
        if name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    }
    return json.dumps({name: base64.b64encode(value.encode()).decode() for name, value in keys.items()})


class Podman:
    def __init__(self, folder: Path) -> None:
        self.conf = folder / "containers.conf"
        self.conf.write_text(CONTAINERS_CONF)

    def __call__(self, *arguments: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"CONTAINERS_CONF": str(self.conf)}
        return subprocess.run(
            ["podman", *arguments], env=environment, text=True, capture_output=True, check=check, **more
        )


def play(folder: Path, s3: S3Server, document: Any) -> Ended:
    podman, name = Podman(folder), f"tunejob-test-{uuid.uuid4().hex[:8]}"
    path = folder / "pod.yaml"
    path.write_text(yaml.safe_dump_all(playable(rendered(folder / "overlay", s3, document), name, folder)))
    podman("secret", "create", name, "-", input=secret(s3))
    try:
        played = podman("kube", "play", "--network", "host", str(path), check=False)
        assert played.returncode == 0, played.stderr
        code = int(podman("wait", f"{name}-tunejob").stdout)
        logs = podman("logs", f"{name}-tunejob")
        (inspected,) = json.loads(podman("inspect", f"{name}-tunejob").stdout)
        return Ended(code, logs.stdout + logs.stderr, (folder / "termination-log").read_text(), inspected)
    finally:
        podman("kube", "down", str(path), check=False)
        podman("secret", "rm", name)


def fill(s3: S3Server, bucket: str) -> None:
    for path in tiny_dir().iterdir():
        s3.client().upload_file(str(path), bucket, f"model/{path.name}")
    s3.client().put_object(
        Bucket=bucket, Key="rows.jsonl", Body="".join(json.dumps(row) + "\n" for row in ROWS * 4).encode()
    )


def test_the_pod_trains_and_publishes(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    fill(s3, bucket)
    ended = play(tmp_path, s3, spec(bucket))
    assert ended.exit_code == 0, ended.said[-3000:]
    manifest = verify(open_store(f"s3://{bucket}/out"))
    assert "adapter/adapter_model.safetensors" in {file.key for file in manifest.files}
    assert {path.stat().st_uid for path in (tmp_path / "scratch").rglob("*")} == {10001}


def test_a_spec_that_does_not_hold_ends_the_pod_with_its_code_and_its_words(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    ended = play(tmp_path, s3, spec(bucket) | {"lora": {"rank": 8}})
    assert ended.exit_code == 10, ended.said[-3000:]
    assert json.loads(ended.last_words)["class"] == "SpecError"
    assert "/lora/rank" in ended.last_words
    assert ended.inspected["Config"]["User"] == "10001:0"
    assert ended.inspected["HostConfig"]["ReadonlyRootfs"] is True
    assert not ended.inspected["EffectiveCaps"]
    assert "no-new-privileges" in ended.inspected["HostConfig"]["SecurityOpt"]
    assert ended.inspected["HostConfig"]["Memory"] == 12 << 30
