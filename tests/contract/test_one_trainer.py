"""What a run asks of the engine's trainers, in its own code as it is in the lock."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from job.host.micro_batch import MicroBatch
from job.training.trainer_arguments import join_rows
from tests.forking import environment, run_forked
from tests.specs import parse


def test_of_trls_trainers_the_one_that_is_used_is_rewritten(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    code, _, complaint = run_forked(
        "tests.contract.unsloth_trainers:main", ["sft", str(found)], tmp_path, environment(tmp_path), 300
    )
    assert code == 0, complaint[-2000:]
    assert json.loads(found.read_text()) == ["UnslothSFTTrainer"]


def test_rows_are_joined_without_padding(tmp_path: Path) -> None:
    """The first token of each is not learned: the one before it is another row's."""
    code, _, complaint = run_forked(
        "tests.contract.unsloth_joined:main", [str(tmp_path)], tmp_path, environment(tmp_path), 300
    )
    assert code == 0, complaint[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["padding_free"]
    assert "attention_mask" not in found["names"]
    assert found["input_ids"] == [[11, 12, 13, 14, 15, 21, 22, 23, 31, 32, 33, 34]]
    assert found["labels"] == [[-100, 12, 13, 14, 15, -100, 22, 23, -100, 32, 33, 34]]
    assert found["packed_seq_lengths"] == [5, 3, 4]


DPO = {"/training/method": "dpo", "/data/train/0/format": "preference"}


@pytest.mark.parametrize(
    ("changes", "rows", "device", "joined"),
    [
        ({}, 2, "cuda", True),
        ({}, 2, "cpu", False),
        ({}, 1, "cuda", False),
        ({"/data/packing": True}, 2, "cuda", False),
        ({"/model/backend": "peft"}, 2, "cuda", False),
        ({"/model/precision": "full"}, 2, "cuda", False),
        (DPO, 2, "cuda", False),
    ],
)
def test_rows_are_joined_where_each_still_sees_itself_alone(
    changes: dict[str, Any], rows: int, device: str, joined: bool
) -> None:
    spec, dataset = parse(changes), SimpleNamespace()
    assert join_rows(spec, MicroBatch(rows, 1), device, dataset) == ({"padding_free": True} if joined else {})
    assert vars(dataset) == ({"_unsloth_truncated_to": spec.model.max_seq_length} if joined else {})
