"""Where a run begins: disks that nothing can be written to, and a locale that has only the letters of ASCII."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.errors import InputError
from job.plan.scratch import make_scratch
from tests.flow.running import DEMO
from tests.forking import ROOT, environment
from tests.specs import changed, parse
from tests.tiny import tiny_dir


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system as hardened pods have it, whoever asks."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def there(folder: Path) -> dict[str, str]:
    """A model and rows that are really there: what is not is refused before anything else."""
    rows = folder / "rows.jsonl"
    rows.write_text((DEMO / "train.jsonl").read_text("utf-8"), "utf-8")
    return {"/model/source": str(tiny_dir()), "/data/train/0/source": str(rows)}


def failure(folder: Path, changes: dict[str, object], *options: str, **variables: str) -> dict[str, object]:
    """How `tunejob run` ends."""
    spec = folder / "spec.json"
    spec.write_text(json.dumps(changed(changes), ensure_ascii=False), "utf-8")
    command = [sys.executable, "-m", "job", "run", str(spec), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment(folder, variables), capture_output=True, check=False)
    facts = dict(json.loads(done.stdout.decode().splitlines()[-1]))
    assert facts["exit_code"] == done.returncode
    return facts


def test_scratch_that_cannot_be_made_is_refused_by_its_variable(read_only: Path) -> None:
    with pytest.raises(InputError) as refused:
        make_scratch(str(read_only / "scratch"), parse({}))
    (fault,) = refused.value.faults
    assert (fault.where, fault.found) == ("TUNEJOB_WORKDIR", ascii(str(read_only / "scratch")))
    assert "Read-only file system" in fault.message
    assert "emptyDir" in fault.hint


def test_no_temporary_directory_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prefix: str) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(InputError, match="TUNEJOB_WORKDIR: no scratch directory can be made: No usable"):
        make_scratch(None, parse({}))


def test_an_output_that_cannot_be_written_is_refused_by_its_pointer(read_only: Path, tmp_path: Path) -> None:
    facts = failure(tmp_path, {"/output/uri": str(read_only / "out"), **there(tmp_path)})
    assert (facts["class"], facts["pointer"]) == ("InputError", "/output/uri")
    assert "Read-only file system" in str(facts["message"])


def test_letters_that_the_locale_does_not_know(tmp_path: Path) -> None:
    """The encoding of paths and files is the locale's by default: paths beyond ASCII were unknown failures."""
    given = there(tmp_path)
    Path(given["/data/train/0/source"]).rename(tmp_path / "données.jsonl")
    changes = given | {"/output/uri": str(tmp_path / "größe"), "/data/train/0/source": str(tmp_path / "données.jsonl")}
    facts = failure(tmp_path, changes, LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", TUNEJOB_DEVICE="gpu")
    assert facts["class"] == "DeviceError", "found once the rows were seen and the output was written to"
    assert os.listdir(tmp_path / "größe") != []
