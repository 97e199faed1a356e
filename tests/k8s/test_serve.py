"""The server of a finished run, started as its manifest says and asked; only the places and the port are other ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.flow.running import run_tiny
from tests.k8s.render import Document, only
from tests.servers import _free_ports
from tests.tiny import narrow_dir

READY_SECONDS = 120
NEEDED = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
TUNED = {"role": "user", "content": "Turn on the lamp."}


def ask(port: int, path: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


@pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="llama.cpp's server needs packages that no lock has")
def test_the_tuned_model_answers(manifests: dict[str, list[Document]], tmp_path: Path) -> None:
    """Fetched, checked and served by the manifest's commands; the answer begins as the one that the run has stored."""
    changes = {"/model/source": str(narrow_dir()), "/model/precision": "16bit", "/export": {"gguf": ["bf16"]},
               "/training/max_steps": 12, "/evaluation/max_new_tokens": 8}  # fmt: skip
    assert run_tiny(tmp_path, changes).exit_code == 0
    (asked,) = (
        row
        for row in json.loads((tmp_path / "out" / "report" / "answers.json").read_text())
        if row["prompt"].count("lamp.")
    )
    pod = only(manifests["components/serve"], "Deployment")["spec"]["template"]["spec"]
    (port,), models = _free_ports(1), tmp_path / "models"
    models.mkdir()
    given = {
        "$(OUTPUT)": str(tmp_path / "out"),
        "$(TYPE)": "bf16",
        "/models": str(models),
        "$(CONTEXT)": "512",
        "0.0.0.0": "127.0.0.1",
        "8080": str(port),
    }

    def here(container: Document) -> list[str]:
        words = [*container["command"][1:], *container["args"]]
        for there, place in given.items():
            words = [word.replace(there, place) for word in words]
        return [sys.executable, *words]

    subprocess.run(here(pod["initContainers"][0]), check=True, capture_output=True)
    assert (models / "model.gguf").resolve().suffix == ".gguf"
    server, probe = pod["containers"][0], pod["containers"][0]["readinessProbe"]["httpGet"]["path"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(here(server), stdout=log, stderr=log, cwd=tmp_path)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                assert [model["id"] for model in ask(port, probe)["data"]] == ["tuned"]
                break
            except urllib.error.URLError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.5)
        wanted = {"model": "tuned", "messages": [TUNED], "temperature": 0, "max_tokens": 8}
        said = ask(port, "/v1/chat/completions", wanted)["choices"][0]["message"]["content"]
        assert said.split()[:2] == asked["trained"].split()[:2]  # the tiny model is near a tie later on
    finally:
        process.kill()
        process.wait()
