"""What cannot fit is refused with needed and available bytes; what fits is not."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from job.errors import CapacityError, Fault, InputError, classify
from job.plan import require as capacity
from job.spec import JobSpec, parse_spec

PARAMETERS = 3 * 1000 * 1000
CARD = {"kind": "cuda", "name": "a card", "host_memory_bytes": 1 << 40}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """Headers of two shards with three tensors of a million weights; the weights themselves are not needed."""
    for shard, names in (("a", ("x", "y")), ("b", ("z",))):
        tensors = {name: {"dtype": "BF16", "shape": [1000, 1000], "data_offsets": [0, 0]} for name in names}
        header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
        (tmp_path / f"{shard}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return tmp_path


def spec(precision: str) -> JobSpec:
    document: dict[str, Any] = {
        "version": 1, "name": "x", "model": {"source": "m", "precision": precision, "backend": "peft"},
        "data": {"train": [{"source": "r.jsonl", "format": "text"}]}, "output": {"uri": "o"},
    }  # fmt: skip
    return parse_spec(json.dumps(document).encode())


def test_parameters_are_counted_over_all_shards(model_dir: Path) -> None:
    assert capacity.parameters(model_dir) == PARAMETERS


@pytest.mark.parametrize(("precision", "needed"), [("4bit", 0.5), ("8bit", 1.0), ("16bit", 2.0), ("full", 6.0)])
def test_weights_larger_than_the_card_are_refused(model_dir: Path, precision: str, needed: float) -> None:
    needed_bytes = int(PARAMETERS * needed)
    capacity.require_memory(model_dir, spec(precision), CARD | {"total_memory_bytes": needed_bytes})
    with pytest.raises(CapacityError) as caught:
        capacity.require_memory(model_dir, spec(precision), CARD | {"total_memory_bytes": needed_bytes - 1})
    fault = caught.value.faults[0]
    assert fault.where == "/model/precision"
    assert str(needed_bytes) in fault.expected
    assert str(needed_bytes - 1) in fault.found


def test_a_disk_too_small_is_refused_with_both_figures(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    capacity.require_disk(tmp_path, 1, "a byte")
    with pytest.raises(CapacityError) as caught:
        capacity.require_disk(tmp_path, free * 2, "a mountain")
    assert f"{free * 2} bytes" in caught.value.faults[0].expected
    assert "bytes free" in caught.value.faults[0].found


def test_a_full_disk_gets_its_figures_once(tmp_path: Path) -> None:
    total = shutil.disk_usage(tmp_path).total
    full = classify(OSError(errno.ENOSPC, "No space left on device"))
    (fault,) = capacity.with_disk_figures(full, tmp_path, "s3://bucket/prefix", tmp_path / "nothing").faults
    assert fault.message == full.faults[0].message
    assert fault.found.endswith(" bytes free")
    assert fault.expected == f"more than {total} bytes in all"
    named = CapacityError(Fault("the disk is full", where="", found="5 bytes free", expected="6 bytes"))
    memory = classify(MemoryError())
    assert capacity.with_disk_figures(named, tmp_path) is named
    assert capacity.with_disk_figures(memory, tmp_path) is memory
    assert capacity.with_disk_figures(full, "s3://bucket/prefix") is full


@pytest.mark.parametrize(
    ("optimizer", "keeps_best", "per_parameter"),
    [
        ("adamw_torch", False, 12),
        ("adamw_torch", True, 16),
        ("adamw_8bit", False, 6),
        ("paged_adamw_32bit", False, 12),
        ("sgd", False, 4),
    ],
)
def test_a_checkpoint_has_trained_weights_and_moments(optimizer: str, keeps_best: bool, per_parameter: int) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(100, 100, bias=False), torch.nn.Linear(100, 30, bias=False))
    model[0].requires_grad_(False)
    assert capacity.checkpoint_bytes(model, optimizer, keeps_best) == 3000 * per_parameter


def test_a_tracker_without_its_package_is_refused_by_name() -> None:
    capacity.require_trackers(("tensorboard",))
    with pytest.raises(InputError) as caught:
        capacity.require_trackers(("tensorboard", "wandb", "mlflow"))
    assert [fault.found for fault in caught.value.faults] == ["wandb", "mlflow"]


def test_names_that_no_server_of_mlflow_takes_are_changed() -> None:
    from job.tracking.mlflow import plain

    assert plain("trained/gsm8k:exact_match,strict-match") == "trained/gsm8k_exact_match_strict-match"
    assert plain("evaluation.json_schema.$defs." + "a" * 300) == ("evaluation.json_schema._defs." + "a" * 300)[:250]


def test_every_tracker_of_the_schema_is_one() -> None:
    from job.spec import job_schema
    from job.tracking import TRACKERS

    assert set(TRACKERS) == set(job_schema()["properties"]["tracking"]["items"]["enum"])
