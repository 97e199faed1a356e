"""checkov on everything that is rendered: what it says is in checkov.json with a reason, and nothing else is there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.pods import pods
from tests.k8s.render import ROOT, Document

CHECKOV = ROOT / ".venv-checkov"
pytestmark = pytest.mark.skipif(not (CHECKOV / ".packages").exists(), reason="checkov is not set up: make k8s-test")


def as_known(documents: list[Document]) -> list[Document]:
    """The documents, and beside kinds that checkov does not know the Jobs that they make."""
    inside = [pod for pod in pods(documents) if pod.where.startswith(("JobSet", "ClusterTrainingRuntime"))]
    made = [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": pod.where.lower().replace("/", "-")},
            "spec": pod.job,
        }
        for pod in inside
    ]
    return [*documents, *made]


def test_checkov_finds_only_what_is_justified(manifests: dict[str, list[Document]], tmp_path: Path) -> None:
    for name, documents in manifests.items():
        (tmp_path / f"{name.replace('/', '-')}.yaml").write_text(yaml.safe_dump_all(as_known(documents)))
    checkov = [CHECKOV / "bin" / "python", CHECKOV / "bin" / "checkov", "--framework", "kubernetes", "--skip-download"]
    quiet = os.environ | {"BC_SOURCE": "cli", "LOG_LEVEL": "ERROR", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*checkov, "--output", "json", "--directory", tmp_path], capture_output=True, text=True, env=quiet
    )
    result = json.loads(done.stdout)
    assert result["summary"]["passed"] > 1000
    assert result["summary"]["parsing_errors"] == 0
    found: dict[str, set[str]] = {}
    for check in result["results"]["failed_checks"]:
        found.setdefault(check["check_id"], set()).add(
            f"{check['file_path']} {check['resource']}: {check['check_name']}"
        )
    justified = json.loads((ROOT / "tests" / "k8s" / "checkov.json").read_bytes())
    assert {name: where for name, where in found.items() if name not in justified} == {}
    assert set(justified) == set(found)  # an exception that nobody needs any more is removed
