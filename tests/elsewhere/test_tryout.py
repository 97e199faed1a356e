"""The try-out really run by Docker Compose on podman: shipped files, built image. Skipped unless TUNEJOB_IMAGE is set.

No registry is reached here, so the store's image is made of the same SeaweedFS program from its package, and the model
comes from the store instead of the Hub. The engine here resolves no container names: addresses are fixed instead.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from job.render import render
from job.render.options import RenderArguments, options
from tests.elsewhere.examples import FOLDER, ROOT, SPECS
from tests.elsewhere.tools import BIN
from tests.image.build import BASE, make_base
from tests.image.container import CONTAINERS_CONF, IMAGE
from tests.smollm2 import model_dir

pytestmark = [pytest.mark.skipif(not IMAGE, reason="TUNEJOB_IMAGE is not set"), pytest.mark.timeout(1800)]
STORE_IMAGE = "localhost/tunejob-try-out-store:test"
ADDRESSES = """
networks:
  default:
    ipam: {config: [{subnet: 10.89.77.0/24}]}
services:
  store:
    networks: {default: {ipv4_address: 10.89.77.10}}
    extra_hosts: ["store:10.89.77.10"]
    ports: !override ["127.0.0.1:8399:8333"]
  bucket: {extra_hosts: ["store:10.89.77.10"]}
  tunejob: {extra_hosts: ["store:10.89.77.10"]}
"""


@dataclass(frozen=True)
class TryOut:
    folder: Path

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        files = [
            self.folder / "compose.yaml",
            FOLDER / "object-store.yaml",
            FOLDER / "cpu.yaml",
            self.folder / "addresses.yaml",
        ]
        environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.folder}/podman.sock",
            "STORE_IMAGE": STORE_IMAGE,
            "TUNEJOB_IMAGE": IMAGE,
            "TUNEJOB_UPLOAD": str(self.folder / "upload"),
        }
        command = [
            str(BIN / "docker-compose"),
            "--project-name",
            "tunejob-try-out",
            *(word for file in files for word in ("--file", str(file))),
            *arguments,
        ]
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )

    def up(self, changes: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Renders the try-out's spec, with another text here and there, and runs it to its end."""
        spec = (SPECS / "try-out.json").read_text()
        for found, put in changes.items():
            assert found in spec
            spec = spec.replace(found, put)
        chosen = options(RenderArguments(image=IMAGE, name="try-out", parameters="135m"))
        (self.folder / "compose.yaml").write_text(render(spec.encode(), "compose", chosen))
        return self.compose("up", "--no-color", "--force-recreate", "--exit-code-from", "tunejob", "tunejob")


@pytest.fixture
def try_out(tmp_path: Path) -> Iterator[TryOut]:
    make_base()
    shutil.copy(Path(sys.executable).parent / "weed", tmp_path / "weed")
    (tmp_path / "Containerfile").write_text(f"FROM {BASE}\nCOPY --chmod=755 weed /usr/bin/weed\n")
    subprocess.run(
        ["buildah", "build", "--isolation", "chroot", "--quiet", "--tag", STORE_IMAGE, str(tmp_path)], check=True
    )
    shutil.copytree(ROOT / "tests" / "demo", tmp_path / "upload", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(model_dir(), tmp_path / "upload" / "model")
    (tmp_path / "addresses.yaml").write_text(ADDRESSES)
    (tmp_path / "containers.conf").write_text(CONTAINERS_CONF)
    service = ["podman", "system", "service", "--time", "0", f"unix://{tmp_path}/podman.sock"]
    with subprocess.Popen(service, env={**os.environ, "CONTAINERS_CONF": str(tmp_path / "containers.conf")}) as engine:
        while not (tmp_path / "podman.sock").exists():
            assert engine.poll() is None
            time.sleep(0.1)
        made = TryOut(tmp_path)
        yield made
        made.compose("down", "--volumes", "--timeout", "5")
        engine.terminate()


HERE = {"hf://HuggingFaceTB/SmolLM2-135M-Instruct": "s3://try-out/data/model", '"max_steps": 20': '"max_steps": 2'}


def test_the_try_out(try_out: TryOut) -> None:
    done = try_out.up(HERE)
    assert done.returncode == 0, done.stdout[-6000:]
    assert '"event": "published"' in done.stdout
    entry = ("run", "--rm", "--no-deps", "--entrypoint", "/opt/tunejob/bin/tunejob", "tunejob")
    report = try_out.compose(*entry, "report", "s3://try-out/runs/try-out")
    assert report.returncode == 0, report.stdout
    assert "# try-out" in report.stdout
    verified = try_out.compose(*entry, "verify", "s3://try-out/runs/try-out")
    assert '"event": "verified"' in verified.stdout, verified.stdout
    other = try_out.up(HERE | {"data/train.jsonl": "data/nothing.jsonl", "runs/try-out": "runs/other"})
    assert other.returncode == 11, "Docker Compose exits with the code of the run: " + other.stdout[-3000:]
    said = [
        line.partition("{")[1] + line.partition("{")[2]
        for line in other.stdout.splitlines()
        if '"event": "failed"' in line
    ]
    assert json.loads(said[-1])["class"] == "InputError"
