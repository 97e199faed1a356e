"""A training that is killed or stopped goes on where it was: same losses, same adapter, bit for bit (CPU, fp32)."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from job.ledger.claim import spec_bytes
from job.ledger.manifest import SPEC
from job.spec import parse_spec
from job.store import open_store
from tests.flow.running import DEMO, Result, Running, document, run_tiny, tiny, valid_stats, write_spec
from tests.forking import environment, run_forked
from tests.servers import Hub
from tests.specs import LEFT_OUT
from tests.tiny import tiny_dir

STEPS = 24
CHANGES: dict[str, Any] = {
    "/training/max_steps": STEPS,
    "/training/eval_steps": 12,
    "/training/keep": "best",
    "/lora/dropout": 0.1,  # random numbers in every step
    "/output/checkpoints": {"every_steps": 4},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    result = run_tiny(folder, CHANGES)
    assert result.exit_code == 0, result.stdout[-2000:]
    assert [event["step"] for event in result.named("checkpoint")] == list(range(4, STEPS, 4))
    return folder / "out"


def losses(output: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (output / "report" / "losses.jsonl").read_text().splitlines()))


def curve(output: Path) -> list[tuple[Any, ...]]:
    """Everything of a step that is not a time."""
    return [
        tuple(line.get(key) for key in ("step", "loss", "grad_norm", "learning_rate", "held_out_loss"))
        for line in losses(output)
    ]


def start(folder: Path) -> Running:
    return Running(("run", write_spec(folder / "spec.json", tiny(folder / "out", CHANGES))), folder / "scratch")


def same_as(whole: Path, output: Path) -> None:
    assert curve(output) == curve(whole)
    for name in ("adapter/adapter_model.safetensors", "report/answers.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name
    found, wanted = (document(folder / "stats.json")["training"] for folder in (output, whole))
    assert (found["steps"], found["tokens"], found["best_step"]) == (
        wanted["steps"],
        wanted["tokens"],
        wanted["best_step"],
    )


def finished(folder: Path, at_least: int) -> Result:
    """Runs the spec again, to its end."""
    result = run_tiny(folder, CHANGES)
    assert result.exit_code == 0, result.stdout[-2000:]
    (event,) = result.named("resume")
    assert event["step"] >= at_least
    assert valid_stats(folder / "out" / "stats.json")["training"]["resumed_from_step"] == event["step"]
    assert not list((folder / "out").rglob("checkpoints/**/*.*")), (
        "checkpoints are of no use once the adapter is stored"
    )
    return result


def test_a_process_of_its_own_trains_the_same_adapter(whole: Path, tmp_path: Path) -> None:
    """From rows that it opens again, stopped by a signal on its way: every loss and every bit of the adapter."""
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", CHANGES))
    code, said, complaint = run_forked(
        "tests.flow.train_in_process:main", [spec, str(tmp_path)], tmp_path, environment(tmp_path), 300
    )
    assert code == 0, complaint
    result = json.loads(said.splitlines()[-1])
    logged = [{key: row[key] for key in ("step", "loss", "grad_norm", "learning_rate")} for row in result["history"]]
    assert logged == [{key: row[key] for key in logged[0]} for row in losses(whole) if "loss" in row]
    assert result["held_out_history"] == [row for row in losses(whole) if "held_out_loss" in row]
    assert result["resumed_from_step"] >= 4
    found, wanted = (
        load_file(tmp_path / "work" / "adapter" / "adapter_model.safetensors"),
        load_file(whole / "adapter" / "adapter_model.safetensors"),
    )
    assert found.keys() == wanted.keys()
    assert all(bytes(found[name].view(np.uint8)) == bytes(wanted[name].view(np.uint8)) for name in wanted)


def test_after_kills(whole: Path, tmp_path: Path) -> None:
    for at_least in (4, 8):
        running = start(tmp_path)
        running.wait_until(lambda r, step=at_least: r.says(f'"checkpoint", "step": {step}'))
        assert running.kill().exit_code == -signal.SIGKILL
        assert not (tmp_path / "out" / "manifest.json").exists()
    finished(tmp_path, 8)
    same_as(whole, tmp_path / "out")


def test_after_a_stop_signal(whole: Path, tmp_path: Path) -> None:
    """The step of the signal ends and is stored, whatever the interval."""
    spec = {**CHANGES, "/output/checkpoints": {"every_minutes": 600}}
    running = Running(("run", write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", spec))), tmp_path / "scratch")
    running.wait_until(lambda r: r.says('"step": 5,'))
    running.signal(signal.SIGTERM)
    result = running.finish(60)
    assert result.exit_code == 30, result.stdout[-2000:]
    (stored,) = result.named("checkpoint")
    assert stored["step"] >= 5
    finished(tmp_path, stored["step"])
    same_as(whole, tmp_path / "out")


def test_checkpoints_elsewhere(whole: Path, tmp_path: Path) -> None:
    """TUNEJOB_CHECKPOINTS moves them; the output has none."""
    elsewhere = tmp_path / "elsewhere"
    running = Running(
        ("run", write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", CHANGES))),
        tmp_path / "scratch",
        {"TUNEJOB_CHECKPOINTS": str(elsewhere)},
    )
    running.wait_until(lambda r: r.says('"checkpoint", "step": 8'))
    running.kill()
    assert list(elsewhere.rglob("checkpoint.json"))
    assert not list((tmp_path / "out").rglob("checkpoint.json"))
    result = run_tiny(tmp_path, CHANGES, {"TUNEJOB_CHECKPOINTS": str(elsewhere)})
    assert result.exit_code == 0
    assert result.named("resume")
    same_as(whole, tmp_path / "out")
    assert not list(elsewhere.rglob("*.*"))


def test_branches_that_moved_meanwhile_are_read_at_their_commits(hub: Hub, tmp_path: Path) -> None:
    """The spec names no commit: what the first try resolved holds for the whole run, and is named in the manifest."""
    model, rows = hub.repo("org/tiny-llama"), hub.repo("datasets/org/rooms")
    base = model.commit({path.name: path.read_bytes() for path in tiny_dir().iterdir()})
    data = rows.commit({"data/train.jsonl": (DEMO / "train.jsonl").read_bytes()})
    source = {"source": "hf://datasets/org/rooms", "format": "messages", "split": "train[:32]"}
    held_out = source | {"split": "train[-8:]"}
    changes = {
        **CHANGES,
        "/model/source": "hf://org/tiny-llama",
        "/data/train/0": source,
        "/data/held_out/sources": [held_out],
    }
    extra = {"HF_ENDPOINT": hub.endpoint}
    running = Running(
        ("run", write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", changes))), tmp_path / "scratch", extra
    )
    running.wait_until(lambda r: r.says('"checkpoint", "step": 8'))
    running.kill()
    model.commit({"README.md": b"nothing to load"})
    rows.commit({"data/train.jsonl": b"".join((DEMO / "train.jsonl").read_bytes().splitlines(keepends=True)[1:])})
    result = run_tiny(tmp_path, changes, extra)
    assert result.exit_code == 0, result.stdout[-2000:]
    assert len(result.named("resume")) == 1
    manifest = document(tmp_path / "out" / "manifest.json")
    assert [manifest["base"]["revision"], *(source["revision"] for source in manifest["data"])] == [base, data, data]
    assert not list((tmp_path / "out").rglob("checkpoints/**/*.json"))


def test_what_is_trained_is_not_exported_beside_other_rows(tmp_path: Path) -> None:
    """The adapter is stored, a gate is in the way; the rerun would list rows it has not seen."""
    rows = tmp_path / "rows.jsonl"
    lines = Path(tiny(tmp_path)["data"]["train"][0]["source"]).read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:32]))
    gate = [{"metric": "held_out_loss", "at_most": 0.001}]
    changes = {
        "/data/train/0": {"source": str(rows), "format": "messages"},
        "/training/max_steps": 2,
        "/evaluation/gates": gate,
    }
    assert run_tiny(tmp_path, changes).exit_code == 14
    assert run_tiny(tmp_path, changes).named("trained before")
    rows.write_text("".join(lines[1:33]))
    result = run_tiny(tmp_path, changes)
    assert (result.exit_code, result.failure["pointer"]) == (11, "/data/train")
    assert "trained on another set of rows" in result.failure["message"]


def test_other_rows_are_not_gone_on_with(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = (Path(tiny(tmp_path)["data"]["train"][0]["source"])).read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:32]))
    changes = {**CHANGES, "/data/train/0": {"source": str(rows), "format": "messages"}}
    running = Running(
        ("run", write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", changes))), tmp_path / "scratch"
    )
    running.wait_until(lambda r: r.says('"checkpoint", "step": 8'))
    running.kill()
    rows.write_text("".join(lines[1:33]))
    result = run_tiny(tmp_path, changes)
    assert result.exit_code == 11
    assert result.failure["pointer"] == "/data/train"


def test_a_training_that_makes_no_steps_is_ended(tmp_path: Path) -> None:
    """With a limit shorter than any step: exit 20, and every thread's stack in the log."""
    result = run_tiny(tmp_path, CHANGES, {"TUNEJOB_STALL_MINUTES": "0.00001"})
    assert result.exit_code == 20, result.stdout[-2000:]
    assert "in train" in result.stderr
    assert "Thread 0x" in result.stderr
    assert json.loads(result.last_words)["message"] == result.failure["message"] == "the training makes no steps"


def test_what_cannot_be_stored_after_training_is_not_trained_again(tmp_path: Path) -> None:
    """A file where the weights' folder has to be: found once there are weights, long before a checkpoint is due."""
    changes = {"/model/precision": "full", "/lora": LEFT_OUT}
    spec = parse_spec(json.dumps(tiny(tmp_path / "out", changes)).encode())
    open_store(spec.output.uri).write(SPEC, spec_bytes(spec))  # this run's, claimed at once, as earlier versions did
    (tmp_path / "out" / "merged").write_text("in the way")
    first = run_tiny(tmp_path, changes)
    assert (first.exit_code, first.failure["stage"]) == (11, "adapter")
    (tmp_path / "out" / "merged").unlink()
    second = run_tiny(tmp_path, changes)
    assert second.exit_code == 0, second.stdout[-2000:]
    assert [event["step"] for event in second.named("resume")] == [4]
    trained = valid_stats(tmp_path / "out" / "stats.json")["training"]
    assert (trained["steps"], trained["resumed_from_step"]) == (4, 4)
    train_losses = [[event["loss"] for event in result.named("train") if "loss" in event] for result in (first, second)]
    assert [len(losses) for losses in train_losses] == [4, 0]
    assert not list((tmp_path / "out").rglob("checkpoints/**/*.*"))
