"""Whoever can write the prefix can sign a checkpoint: no code in it is run all the same."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.flow.running import Running, run_tiny, tiny, write_spec

CHANGES: dict[str, Any] = {"/training/max_steps": 60, "/output/checkpoints": {"every_steps": 4}}


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after its second checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    running = Running(("run", write_spec(folder / "spec.json", tiny(folder / "out", CHANGES))), folder / "scratch")
    running.wait_until(lambda r: r.says('"checkpoint", "step": 8'))
    running.kill()
    return folder


def resign(manifest: Path) -> None:
    """Writes sizes and digests of what is there now into the checkpoint's manifest."""
    content = json.loads(manifest.read_text())
    del content["sha256"]
    for file in content["files"]:
        data = (manifest.parent / file["key"].rpartition("/")[2]).read_bytes()
        file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(content | {"sha256": digest}))


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_pickle_with_code_is_not_run(name: str, killed: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for path in (killed / "out").rglob(name):
        path.write_bytes(pickle.dumps(Bomb(canary)))
        resign(path.parent / "checkpoint.json")
    result = run_tiny(killed, CHANGES)
    assert not canary.exists()
    assert result.named("resume"), "it was believed: its manifest says so"
    assert result.exit_code == 12, result.stdout[-2000:]


@pytest.mark.parametrize("content", ["[]", '{"watch": {}}', "no JSON"])
def test_progress_of_another_form_is_refused(content: str, killed: Path) -> None:
    for path in (killed / "out").rglob("progress.json"):
        path.write_text(content)
        resign(path.parent / "checkpoint.json")
    result = run_tiny(killed, CHANGES)
    assert result.exit_code == 11, result.stdout[-2000:]
    assert result.failure["pointer"] == "/output/checkpoints"
