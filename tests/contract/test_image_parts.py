"""Optional parts of the image: what its Dockerfile installs by each build argument, and that it fits the lock."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.forking import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
PARTS = {"BENCHMARKS": "locks/benchmarks.txt", "TRACKERS": "locks/trackers.txt"}
# Stands for both Pythons of the build: makes no environment, and prints a lock as itself
PYTHON = '#!/bin/sh\ncase "$1" in -m) exit 0;; esac\nshift; cat "$1"\n'
PIP = '#!/bin/sh\necho "$@" >> calls.txt\n'


def locked(name: str) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9][\w.-]*)==(\S+)", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    return dict(found)


def installs() -> str:
    """The shell of the one instruction that reads the arguments, without its mounts."""
    (found,) = (
        part for part in re.split(r"\n(?=[A-Z]+ )", DOCKERFILE) if part.startswith("RUN") and "${BENCHMARKS}" in part
    )
    joined = found.removeprefix("RUN").replace("\\\n", " ")
    return re.sub(r"--mount=\S+", "", joined)


@pytest.mark.parametrize("given", [(), ("BENCHMARKS",), ("TRACKERS",), ("BENCHMARKS", "TRACKERS")], ids="+".join)
@pytest.mark.parametrize("torch", ["", "torch==2.13.0+cpu"], ids=["gpu", "cpu"])
def test_an_argument_installs_its_part_by_hash_and_nothing_else_does(
    given: tuple[str, ...], torch: str, tmp_path: Path
) -> None:
    for name, text in (("python", PYTHON), ("tools/bin/pip", PIP)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "locks").symlink_to(ROOT / "locks")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "llama.whl").touch()
    asked = {name: "1" if name in given else "" for name in PARTS}
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python"), "TORCH": torch} | asked
    subprocess.run(["sh", "-c", installs()], cwd=tmp_path, env=environment, check=True, timeout=30)
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert all("--no-deps" in call for call in calls)
    hashed = [call.rpartition(" ")[2] for call in calls if "--require-hashes" in call]
    assert hashed == ["lock.txt", *(PARTS[name] for name in given)]
    assert [call.rpartition(" ")[2] for call in calls if "--require-hashes" not in call] == [
        *([torch] if torch else []),
        "wheels/llama.whl",
    ]


def test_each_argument_is_declared_and_its_lock_is_copied_before() -> None:
    before = DOCKERFILE.partition("RUN")[0] + DOCKERFILE[: DOCKERFILE.index('if [ -n "${BENCHMARKS}" ]')]
    for name, lock in PARTS.items():
        assert f'ARG {name}=""' in before
        assert re.search(rf"^COPY .*{re.escape(lock)}", before, re.MULTILINE)


@pytest.mark.parametrize("lock", PARTS.values())
def test_an_optional_part_fits_the_rest(lock: str) -> None:
    """Laid over the others without a look at what they need: no version may change, and each file has its hash."""
    part, others = locked(lock), [locked(other) for other in ("locks/cuda.txt", *PARTS.values()) if other != lock]
    for other in others:
        assert {name: version for name, version in part.items() if other.get(name, version) != version} == {}
    assert not part.keys() & locked("locks/cuda.txt").keys(), "what is there already is not installed again"
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text("utf-8"))
    assert [block for block in blocks if "==" in block.partition("\n")[0] and "--hash=sha256:" not in block] == []
