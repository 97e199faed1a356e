"""PLACE/latest: the run below a place that was published last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from job.chat.fetched import main as fetched
from job.errors import InputError
from job.ledger.latest import run_at
from tests.servers import S3Server
from tests.unit.test_following import published


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "runs" / "b", "2026-03-01T00:00:00Z")
    published(tmp_path / "runs" / "a", "2026-02-01T00:00:00Z")
    (tmp_path / "runs" / "stopped").mkdir()
    (tmp_path / "runs" / "stopped" / "stats.json").write_text("{}")
    return tmp_path / "runs"


def test_it_is_the_one_that_was_published_last(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever later ones have stored that a gate has stopped."""
    assert run_at("runs/latest") == "runs/b"
    assert run_at(f"{runs}/latest/") == f"{runs}/b"
    published(runs / "c", "2026-04-01T00:00:00Z", adapter=False)
    assert run_at("runs/latest") == "runs/c"
    monkeypatch.chdir(runs)
    assert run_at("latest") == "./c"


def test_another_address_is_as_it_was(runs: Path) -> None:
    others = ["runs/a", "nowhere", "s3://latest", "/latest"]
    published(runs.parent / "c", "2026-03-01T00:00:00Z")
    assert [run_at(name) for name in others] == others
    published(runs / "latest", "2026-01-01T00:00:00Z")
    assert run_at("runs/latest") == "runs/latest", "a run that is called so"


def test_of_a_bucket_too(s3: S3Server, bucket: str, runs: Path) -> None:
    for path in runs.glob("*/*.json"):
        s3.client().put_object(Bucket=bucket, Key=f"x/{path.relative_to(runs)}", Body=path.read_bytes())
    assert run_at(f"s3://{bucket}/x/latest") == f"s3://{bucket}/x/b"


@pytest.mark.parametrize("command", ["report", "verify", "chat", "compare"])
def test_where_there_is_none_the_commands_say_so(command: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run has been published below"):
        run_at(str(tmp_path / "latest"))
    asked = [str(tmp_path / "latest"), *([str(tmp_path)] if command == "compare" else [])]
    done = subprocess.run([sys.executable, "-m", "job", command, *asked], input="", capture_output=True, text=True)
    assert done.returncode == 11
    assert "no run has been published below this place" in done.stdout + done.stderr


def test_what_is_served_says_so_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetched([str(tmp_path / "latest"), str(tmp_path)]) == 11
    assert "no run has been published" in json.loads(capsys.readouterr().out)["message"]
