"""Of TRL's trainers the engine rewrites the one that a run uses, in its own code as it is in the lock."""

from __future__ import annotations

import json
from pathlib import Path

from tests.forking import environment, run_forked


def test_the_others_stay_as_they_are(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    code, _, complaint = run_forked(
        "tests.contract.unsloth_trainers:main", ["sft", str(found)], tmp_path, environment(tmp_path), 300
    )
    assert code == 0, complaint[-2000:]
    assert json.loads(found.read_text()) == ["UnslothSFTTrainer"]
