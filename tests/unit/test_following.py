"""A schedule's next run: its output, the run that it goes on from, and rows that are new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from job.init.following import main
from job.ledger.manifest import File, Manifest
from tests.specs import changed

ROW = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
OLD = "0" * 64


def published(folder: Path, created: str, rows: str = OLD, adapter: bool = True) -> None:
    """What is looked at of a run that has finished."""
    folder.mkdir(parents=True)
    source = {"source": "rows.jsonl", "split": "train", "revision": None, "sha256": rows}
    base = {"source": "m", "public_id": "m", "revision": None}
    files = [File(key, 2, OLD) for key in ("adapter/adapter_model.safetensors", "spec.json", "stats.json")]
    whole = Manifest("f" * 16, folder.name, base, [source], None, {}, {}, files, created=created)
    (folder / "manifest.json").write_bytes(whole.encode())
    if adapter:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("{}")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROW)
    (tmp_path / "spec.json").write_text(json.dumps(changed({"/output/uri": "runs/"})))
    (tmp_path / "runs").mkdir()
    return tmp_path


def next_spec(*further: str) -> dict[str, Any]:
    assert main(["spec.json", "refresh-3", "next.json", *further]) == 0
    return json.loads(Path("next.json").read_text())


def test_the_newest_that_its_gates_let_through_is_gone_on_from(scene: Path) -> None:
    """Not one without a manifest, nor one without an adapter, nor the run itself."""
    published(scene / "runs" / "refresh-1", "2026-01-01T00:00:00Z")
    published(scene / "runs" / "refresh-2", "2026-03-01T00:00:00Z")
    published(scene / "runs" / "a-full-one", "2026-04-01T00:00:00Z", adapter=False)
    published(scene / "runs" / "refresh-3", "2026-05-01T00:00:00Z")
    (scene / "runs" / "stopped" / "adapter").mkdir(parents=True)
    (scene / "runs" / "stopped" / "adapter" / "adapter_config.json").write_text("{}")
    found = next_spec("--continue")
    assert (found["model"]["adapter"], found["output"]["uri"]) == ("runs/refresh-2", "runs/refresh-3")
    assert "adapter" not in next_spec()["model"], "only where it is asked for"


def test_the_first_run_begins_with_the_base(scene: Path) -> None:
    found = next_spec("--continue")
    assert found == changed({"/output/uri": "runs/refresh-3"})


def test_without_new_rows_nothing_is_done(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published(scene / "runs" / "refresh-1", "2026-01-01T00:00:00Z")
    next_spec("--continue")
    from job.source import fetch_data
    from job.spec import parse_spec

    (source,), _ = fetch_data(parse_spec((scene / "spec.json").read_bytes()).data, scene / "work")
    published(scene / "runs" / "refresh-2", "2026-02-01T00:00:00Z", source.sha256)
    Path("next.json").unlink()
    capsys.readouterr()
    assert main(["spec.json", "refresh-3", "next.json", "--continue"]) == 11
    said = json.loads(capsys.readouterr().out)
    assert (said["pointer"], said["found"]) == ("/data/train", f"the rows of run {'f' * 16}, at refresh-2")
    assert not Path("next.json").exists()
    (scene / "rows.jsonl").write_text(ROW * 2)
    assert next_spec("--continue")["model"]["adapter"] == "runs/refresh-2"


@pytest.mark.parametrize(("name", "changes", "code", "words"), [
    ("../elsewhere", {}, 11, "not the name of a folder"), ("a/b", {}, 11, "not the name of a folder"),
    ("refresh-1", {"/model/precision": "full"}, 10, "there is no adapter when every weight is trained"),
    ("refresh-1", {"/lora/seed": 5}, 10, "the adapter has its weights already"),
])  # fmt: skip
def test_a_schedule_that_could_not_go_on_is_refused_at_its_first_run(
    name: str, changes: dict[str, Any], code: int, words: str, scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("spec.json").write_text(json.dumps(changed({"/output/uri": "runs/"} | changes)))
    assert main(["spec.json", name, "next.json", "--continue"]) == code
    assert words in json.loads(capsys.readouterr().out)["message"]
    assert main(["no-spec.json", "refresh-1", "next.json"]) == 11
