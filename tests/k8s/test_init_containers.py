"""The programs that are in manifests, run as they are there; only the places are other ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.k8s.pods import pods
from tests.k8s.render import Document
from tests.servers import Hub
from tests.specs import changed

Manifests = dict[str, list[Document]]


def run(manifests: Manifests, component: str, places: dict[str, Path], **environment: str) -> None:
    (pod,) = (pod for pod in pods(manifests[f"components/{component}"]) if pod.job)
    (container,) = pod.spec["initContainers"]
    environment |= {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}
    program, *arguments = container["args"]
    for there, here in places.items():
        assert there in program
        program = program.replace(there, str(here))
    assert container["command"] == ["python", "-c"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_job_of_a_schedule_has_its_own_output(manifests: Manifests, tmp_path: Path) -> None:
    given = {"version": 1, "output": {"uri": "s3://models/ü/"}}
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "spec.json").write_text(json.dumps(given, ensure_ascii=False), "utf-8")
    places = {"/etc/tunejob": tmp_path / "given", "/scratch": tmp_path}
    run(manifests, "scheduled", places, JOB_NAME="tunejob-refresh-29384760", PYTHONUTF8="0")
    assert json.loads((tmp_path / "spec.json").read_text("utf-8")) == given | {
        "output": {"uri": "s3://models/ü/tunejob-refresh-29384760"}
    }
    (pod,) = (pod for pod in pods(manifests["components/scheduled"]) if pod.job)
    assert pod.tune["args"] == ["run", "/scratch/spec.json"]


def test_a_schedule_goes_on_from_the_newest_run(manifests: Manifests, tmp_path: Path) -> None:
    """The program of its init container, with the places of this machine; which run that is has its own tests."""
    (pod,) = (pod for pod in pods(manifests["components/scheduled-from-newest"]) if pod.job)
    (container,) = pod.spec["initContainers"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/scratch", "/tmp", "/etc/tunejob"}
    assert container["envFrom"] == pod.tune["envFrom"]
    (tmp_path / "spec.json").write_text(json.dumps(changed({"/output/uri": str(tmp_path / "runs")})))
    (tmp_path / "runs").mkdir()
    places = {
        "/etc/tunejob/spec.json": tmp_path / "spec.json",
        "/scratch/spec.json": tmp_path / "next.json",
        "$(JOB_NAME)": "refresh-7",
    }
    command = [sys.executable, *container["command"][1:], *(str(places.get(word, word)) for word in container["args"])]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads((tmp_path / "next.json").read_text())["output"]["uri"] == str(tmp_path / "runs" / "refresh-7")
    assert pod.tune["args"] == ["run", "/scratch/spec.json"]


def test_the_cached_model_is_fetched_once(manifests: Manifests, hub: Hub, tmp_path: Path) -> None:
    name = "unsloth/Llama-3.2-1B-Instruct"
    files = {"config.json": b"{}", "model.safetensors": b"w" * 5000, "setup.py": b"no", "pytorch_model.bin": b"no"}
    hub.repo(name).commit(files)
    for _ in range(2):
        hub_variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        run(manifests, "model-cache", {"/models": tmp_path}, **hub_variables)
    assert {path.name for path in (tmp_path / name).iterdir() if path.is_file()} == {"config.json", "model.safetensors"}
    assert (tmp_path / name / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert hub.asked("GET /api/agent.*") == 0
    assert hub.asked("GET .*/config.json") == 1
