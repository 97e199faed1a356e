"""The memory that each step of the exports was planned to take, on another model than that of test_everything.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.export_memory import STEPS, Taken, require_all_planned, require_planned, taken_by
from tests.flow.running import run_tiny
from tests.tiny import narrow_dir

pytestmark = [pytest.mark.slow, pytest.mark.long]
MAX_SEQ_LENGTH = 128  # more than any row has: what counts is how long the compared ones are
EXPORT = {
    "merged": ["16bit", "4bit"], "gguf": ["bf16", "q8_0", "q4_0"],
    "imatrix": True, "imatrix_tokens": 1024, "check_tokens": 512,
    "lora_gguf": "f16", "limits": {"merged_logits": 1, "merged_kl": 1, "merged_4bit_kl": 100,
                                   "gguf": [{"type": name, "kl": 100, "perplexity_rise": 1000}
                                            for name in ("bf16", "q8_0", "q4_0")]},
}  # fmt: skip

CHANGES: dict[str, Any] = {
    "/model/source": str(narrow_dir()),
    "/model/max_seq_length": MAX_SEQ_LENGTH,
    "/export": EXPORT,
}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Taken:
    folder = tmp_path_factory.mktemp("narrow")
    result = run_tiny(folder, CHANGES, forked=False)
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return taken_by(folder)


@pytest.mark.parametrize("step", STEPS)
def test_the_plan_predicted_the_memory(taken: Taken, step: str) -> None:
    require_planned(taken, step)


def test_every_process_was_planned(taken: Taken) -> None:
    require_all_planned(
        taken, 11
    )  # reload, adapter on the original base, merge, 4-bit, comparison, two conversions, three types, LoRA
