"""The same result on every machine: fp32 on any CPU, whatever instructions, cores, home and time zone it has."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from job.host.stats import arithmetic
from job.source import fetch_data
from job.spec import DataSpec, SourceSpec
from tests.flow.running import Result, Running, tiny, tunejob, valid_stats, write_spec

STEPS = 16
CHANGES: dict[str, Any] = {
    "/training/max_steps": STEPS,
    "/training/eval_steps": 8,
    "/lora/dropout": 0.1,  # random numbers in every step
    "/output/checkpoints": {"every_steps": 2},
    "/export": {"merged": ["16bit"], "check_tokens": 64, "limits": {"merged_logits": 1, "merged_kl": 1}},
}
FILES = ("adapter/adapter_model.safetensors", "report/answers.json", "report/probe.safetensors")

# How far a loss may be from the same step's elsewhere, as a part of it: some ten times the largest distance measured
# after 16 steps (7e-6 between the engines, 2e-6 between AVX512 with two threads and AVX2 with one). bf16 moves the loss
# of a row by 1e-3 at once.
ROUNDING = 1e-4

# Below every CPU that the suite runs on, so that something differs on each.
LOWER = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OMP_NUM_THREADS": "2",
}
# Unsloth, oneDNN and accelerate compute in half precision if these say so.
HALF = {
    "UNSLOTH_CPU_BF16": "1",
    "UNSLOTH_CPU_FP16": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "ACCELERATE_MIXED_PRECISION": "bf16",
}
PLACE = {"LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7"}
LEFT_OVER = {
    ".cache/huggingface/hub/models--junk/refs/main": "no commit",
    ".cache/huggingface/accelerate/default_config.yaml": "mixed_precision: bf16\n",
    ".cache/torch/kernels/junk": "no kernel",
    ".config/accelerate/default_config.yaml": "mixed_precision: bf16\n",
    ".triton/cache/junk/launcher.so": "no library",
    "datasets.py": "raise SystemExit('the current directory was searched for modules')\n",
    "unsloth_compiled_cache/UnslothSFTTrainer.py": "raise SystemExit('what another run left was imported')\n",
}


@dataclass(frozen=True)
class Run:
    """One that succeeded, with its output."""

    result: Result
    output: Path

    @property
    def stats(self) -> dict[str, Any]:
        return valid_stats(self.output / "stats.json")

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Everything of each line that is not a time."""
        lines = map(json.loads, (self.output / "report" / "losses.jsonl").read_text().splitlines())
        return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def run(
    folder: Path, changes: dict[str, Any] | None = None, extra: dict[str, str] | None = None, forked: bool | None = None
) -> Run:
    """The same run id wherever it runs: its output is `out` in the current directory."""
    spec = write_spec(folder / "spec.json", tiny("out", CHANGES | (changes or {})))
    result = tunejob("run", spec, scratch=folder / "scratch", extra=extra, cwd=folder, forked=forked)
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return Run(result, folder / "out")


def lived_in(folder: Path) -> dict[str, str]:
    """A home and current directory full of what other programs left; the environment of somebody who lives there."""
    for name, text in LEFT_OVER.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"HOME": str(folder), **PLACE, **HALF}


def distance(one: Run, other: Run) -> float:
    """The largest of two losses of one step, as a part of it."""
    assert [line["step"] for line in one.curve] == [line["step"] for line in other.curve]
    pairs = [
        (a[name], b[name])
        for a, b in zip(one.curve, other.curve, strict=True)
        for name in ("loss", "held_out_loss")
        if name in a
    ]
    return max(abs(a - b) / a for a, b in pairs)


def in_fp32(run: Run) -> None:
    assert run.stats["effective"]["compute_dtype"] == "float32"
    assert [event["max_logit_difference"] <= 1e-6 for event in run.result.named("reload")] == [True]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Nothing in its way, the environment as it is."""
    return run(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    running = Running(("run", write_spec(folder / "spec.json", tiny("out", CHANGES))), folder / "scratch", cwd=folder)
    running.wait_until(lambda r: r.says('"checkpoint", "step": 2,'))
    assert running.kill().exit_code == -signal.SIGKILL
    assert not (folder / "out" / "adapter").exists()
    return folder


def test_it_computes_in_fp32_and_its_files_answer_as_it_did(base: Run) -> None:
    in_fp32(base)
    assert len(base.curve) == STEPS + STEPS // 8


def test_home_time_zone_and_directory_decide_nothing_and_are_not_another_machine(
    base: Run, killed: Path, tmp_path: Path
) -> None:
    """Gone on with after a checkpoint, and yet equal bit for bit."""
    shutil.copytree(killed / "out", tmp_path / "out")
    found = run(tmp_path, extra=lived_in(tmp_path), forked=True)
    assert len(found.result.named("resume")) == 1
    assert found.stats["training"]["resumed_elsewhere"] == {}
    assert found.stats["training"]["resumed_from_step"] >= 2
    in_fp32(found)
    assert found.curve == base.curve
    for name in FILES:
        assert (found.output / name).read_bytes() == (base.output / name).read_bytes(), name


def test_fewer_instructions_and_other_threads_go_on_within_rounding_and_say_so(
    base: Run, killed: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed / "out", tmp_path / "out")
    found = run(tmp_path, extra=LOWER, forked=True)  # from a process that has imported everything under these variables
    in_fp32(found)
    assert distance(base, found) <= ROUNDING
    before, now = arithmetic(base.stats["device"]), arithmetic(found.stats["device"])
    assert (now["cpu_instructions"], now["cpu_threads"]) == ("DEFAULT", "2")
    differing = {name: [before[name], now[name]] for name in before if before[name] != now[name]}
    assert found.stats["training"]["resumed_elsewhere"] == differing
    resumed, said = found.result.named("resume")
    assert resumed["step"] == said["step"] == found.stats["training"]["resumed_from_step"] >= 2
    assert {name: said[name] for name in differing} == differing
    assert "not bit for bit" in said["note"]


def test_the_order_in_which_a_file_system_lists_files_decides_nothing() -> None:
    """In memory, where there is such a file system: it lists files by the time they were made, others by a hash."""
    names = ["train-0.jsonl", "train-1.jsonl", "train-2.jsonl"]
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as scratch:
        found = []
        for label, order in (("first", names), ("second", [names[1], names[2], names[0]])):
            rows = Path(scratch, label, "rows")
            rows.mkdir(parents=True)
            for name in order:
                (rows / name).write_text(json.dumps({"text": name}) + "\n")
            source = SourceSpec(str(rows), "text", "train", None, {}, None, None, 1.0)
            (fetched,), _ = fetch_data(
                DataSpec((source,), None, "model", "all", False, True, 0.05), rows.parent / "work"
            )
            found.append((fetched.sha256, [path.name for path in fetched.files]))
    assert found[0] == found[1]
    assert found[0][1] == names
