"""What is refused on a real run: exit code, place, the termination message, and what is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from job.spec.strict import StrictValidator, load_schema
from tests.flow.running import DEMO, Result, document, run_tiny, valid_stats
from tests.specs import LEFT_OUT
from tests.tiny import broken_narrow_dir, tiny_dir


def refused(result: Result, exit_code: int, pointer: str = "") -> dict[str, object]:
    """The failure's facts, after the checks that hold for every failure."""
    assert result.exit_code == exit_code, result.stdout[-2000:] + result.stderr[-3000:]
    facts = json.loads(result.last_words)
    StrictValidator(load_schema("failure")).validate(facts)
    assert len(result.last_words.encode()) <= 1024
    assert facts == {key: value for key, value in result.failure.items() if key in facts}
    assert facts["exit_code"] == exit_code
    assert facts.get("pointer", "") == pointer
    assert len(facts["run_id"]) == (0 if exit_code == 10 else 16)
    assert facts["retryable"] == (exit_code >= 20)
    return facts


def left(folder: Path) -> set[str]:
    """Top-level names at the output, which never has a manifest after a failure."""
    names = {path.name for path in (folder / "out").iterdir()}
    assert "manifest.json" not in names
    assert valid_stats(folder / "out" / "stats.json")["status"] == "failed"
    return names


def test_a_tracker_that_is_not_installed(tmp_path: Path) -> None:
    facts = refused(run_tiny(tmp_path, {"/tracking": ["wandb"]}), 11, "/tracking")
    assert facts["found"] == "wandb"
    assert not (tmp_path / "out").exists(), "nothing was claimed"


def test_no_gpu_where_one_is_asked_for(tmp_path: Path) -> None:
    facts = refused(run_tiny(tmp_path, extra={"TUNEJOB_DEVICE": "gpu"}), 21)
    assert facts["class"] == "DeviceError"
    assert left(tmp_path) - {"checkpoints"} == {"stats.json"}, "the report of a failure claims nothing"
    assert not list((tmp_path / "out" / "checkpoints").rglob("*.*")), "the lease is given back"


def test_packing_on_the_cpu(tmp_path: Path) -> None:
    refused(run_tiny(tmp_path, {"/data/packing": True, "/model/backend": "unsloth"}), 13, "/data/packing")
    assert "spec.json" not in left(tmp_path)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"/model/precision": "8bit"}, "/model/precision"),
        ({"/training/compute": "fp8", "/model/backend": "unsloth"}, "/training/compute"),
    ],
)
def test_what_a_cpu_cannot_is_said_before_anything_is_fetched(
    changes: dict[str, Any], pointer: str, tmp_path: Path
) -> None:
    refused(run_tiny(tmp_path, changes), 13, pointer)
    assert "adapter" not in left(tmp_path)
    assert not {"fetch", "engine"} & {phase["name"] for phase in document(tmp_path / "out" / "stats.json")["phases"]}


def test_a_broken_row_is_found_before_weights_are_fetched(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    good = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello."}]}
    rows.write_text(
        "".join(
            json.dumps(row) + "\n" for row in [good, good, {"messages": [{"role": "nobody", "content": "?"}]}, good]
        )
    )
    facts = refused(
        run_tiny(tmp_path, {"/data/train/0": {"source": str(rows), "format": "messages"}}), 11, "/data/train/0/source"
    )
    assert "row 3" in str(facts["message"])
    assert "nobody" in str(facts)
    left(tmp_path)
    phases = [phase["name"] for phase in document(tmp_path / "out" / "stats.json")["phases"]]
    assert phases[-1] == "data"
    assert "weights" not in phases


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    """Without held-out rows; with them: tests/attacks/test_canaries.py."""
    changes = {"/model/source": str(broken_narrow_dir()), "/data/held_out": LEFT_OUT}
    facts = refused(run_tiny(tmp_path, changes), 14, "")
    assert "diverged" in str(facts["message"])
    assert facts["stage"] == "baseline"
    left(tmp_path)


def test_a_training_that_diverges(tmp_path: Path) -> None:
    """Each step takes the adapter's weights nine times as far to the other side."""
    wild = {"max_steps": 80, "batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1, "weight_decay": 10}
    facts = refused(
        run_tiny(tmp_path, {"/training": wild, "/training/gradient_checkpointing": False}),
        14,
        "/training/learning_rate",
    )
    assert "diverged" in str(facts["message"])
    assert facts["stage"] == "train"
    left(tmp_path)


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("config.json", {"intermediate_size": 72}),
        ("generation_config.json", None),
    ],
    ids=["other shapes", "damaged file"],
)
def test_a_model_that_cannot_be_loaded(file: str, changed: dict[str, object] | None, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir(), model)
    text = "{" if changed is None else json.dumps(document(model / file) | changed)
    (model / file).write_text(text)
    refused(run_tiny(tmp_path, {"/model/source": str(model)}), 11, "/model/source")


def test_a_gate_that_is_not_met(tmp_path: Path) -> None:
    gates = [{"metric": "held_out_loss", "at_most": 0.001, "gain_at_least": 100.0}]
    facts = refused(run_tiny(tmp_path, {"/evaluation/gates": gates}), 14, "/evaluation/gates/0/at_most")
    assert facts["faults"] == 2
    assert {"adapter", "report", "spec.json", "stats.json"} <= left(tmp_path)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").stat().st_size > 100_000
    report = tmp_path / "out" / "report"
    pages = {"report.html", "summary.md", "samples.md", "samples.json", "gates.md", "gates.junit.xml"}
    assert pages | {"answers.json", "losses.jsonl", "probe.safetensors"} == {path.name for path in report.iterdir()}
    assert "The run failed at the stage evaluate with exit code 14" in (report / "report.html").read_text("utf-8")
    failed = [line for line in (report / "gates.md").read_text("utf-8").splitlines() if line.startswith("| failed |")]
    assert [line.split(" | ")[1:3] for line in failed] == [
        ["`tiny`", "`ends with exit code 0`"],
        ["`the trained model`", "`held-out loss at most 0.001`"],
        ["`the trained model`", "`held-out loss better than the base by at least 100`"],
        ["`adapter`", "`held-out loss at most 0.001`"],
        ["`adapter`", "`held-out loss better than the base by at least 100`"],
    ]


@pytest.mark.parametrize(
    ("changes", "exit_code", "pointer"),
    [
        ({"/training/learning_rate": -1}, 10, "/training/learning_rate"),
        ({"/model/source": "no/such/folder"}, 11, "/model/source"),
        ({"/data/train/0/source": "no-such-file.jsonl"}, 11, "/data/train/0/source"),
        ({"/data/train/0/source": "~nobody-of-this-name/rows.jsonl"}, 11, "/data/train/0/source"),
        ({"/data/train/0/format": "alpaca"}, 11, "/data/train/0/columns"),
        ({"/model/source": str(DEMO)}, 11, "/model/source"),
    ],
)
def test_what_the_spec_or_its_addresses_get_wrong(
    changes: dict[str, object], exit_code: int, pointer: str, tmp_path: Path
) -> None:
    """A typo costs nothing: no time, and no output that a mended spec would find claimed."""
    result = run_tiny(tmp_path, changes)
    refused(result, exit_code, pointer)
    assert [event["event"] for event in result.events] == ["failed"]
    assert not (tmp_path / "out").exists()


def test_a_layer_the_model_does_not_have(tmp_path: Path) -> None:
    """The projections of another architecture; lm_head of a tied model is one that it has: test_options.py."""
    result = run_tiny(tmp_path, {"/lora": {"targets": ["Wqkv"]}})
    assert "q_proj" in str(refused(result, 11, "/lora/targets/0")["expected"])


def test_a_time_limit_that_is_none(tmp_path: Path) -> None:
    """Before anything begins, all at once, and not when the limit is first looked at."""
    result = run_tiny(
        tmp_path,
        extra={"TUNEJOB_STOP_SECONDS": "soon", "TUNEJOB_STALL_MINUTES": "1e7", "TUNEJOB_HUB_PAUSE_SECONDS": "-1"},
    )
    assert result.exit_code == 11
    assert [fault.split()[0] for fault in result.failure["all"]] == [
        "TUNEJOB_STOP_SECONDS",
        "TUNEJOB_STALL_MINUTES",
        "TUNEJOB_HUB_PAUSE_SECONDS",
    ]
    assert not (tmp_path / "out").exists()
