"""The memory that each step of the exports was foretold to take, against what its process took in a run of the real command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.flow.running import document, run_tiny, valid_stats
from tests.tiny import tiny_dir, wide_dir

pytestmark = pytest.mark.slow
MAX_SEQ_LENGTH = 128  # more than any row has: what counts is how long the compared ones are
EXPORT = {
    "merged": ["16bit", "4bit"], "gguf": ["bf16", "q8_0", "q4_0"], "imatrix": True, "imatrix_tokens": 1024, "check_tokens": 512,
    "lora_gguf": "f16", "limits": {"merged_logits": 1, "merged_kl": 1, "merged_4bit_kl": 100,
                                   "gguf": [{"type": name, "kl": 100, "perplexity_rise": 1000} for name in ("bf16", "q8_0", "q4_0")]},
}  # fmt: skip
STEPS = {
    "reload": "reloading the adapter", "merge": "merging the adapter", "four_bit": "4-bit weights",
    "compare": "comparison of the merged weights", "convert": "conversion to GGUF", "quantise": "gguf/tiny-Q",
}  # fmt: skip
BESIDE = ("four_bit", "compare")  # the conversion is at work meanwhile


@dataclass(frozen=True)
class Taken:
    """Bytes by step: foretold for its own process, and the peak of anonymous memory that was seen."""

    foretold: dict[str, int]
    seen: dict[str, int]
    children: list[dict[str, Any]]


@pytest.fixture(scope="module", params=["narrow", "wide"])
def taken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Taken:
    folder = tmp_path_factory.mktemp(request.param)
    model = {"narrow": tiny_dir, "wide": wide_dir}[request.param]()
    result = run_tiny(folder, {"/model/source": str(model), "/model/max_seq_length": MAX_SEQ_LENGTH, "/export": EXPORT}, forked=False)
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-3000:]
    planned = {step["name"]: step["ram_bytes"] for step in document(folder / "out" / "report" / "exports.json")["plan"]}
    foretold = {name: planned[name] - (planned["convert"] if name in BESIDE else 0) for name in STEPS}
    children: list[dict[str, Any]] = [c for phase in valid_stats(folder / "out" / "stats.json")["phases"] for c in phase["children"]]
    peaks = {name: max(c["peak_anonymous_bytes"] for c in children if c["what"].startswith(what)) for name, what in STEPS.items()}
    return Taken(foretold, peaks, children)


@pytest.mark.parametrize("step", STEPS)
def test_the_plan_foretold_the_memory(taken: Taken, step: str) -> None:
    assert taken.seen[step] == pytest.approx(taken.foretold[step], rel=0.1)


def test_every_process_was_foretold(taken: Taken) -> None:
    """In the stats, where a reader finds it: each process has its own figure, whatever ran beside it."""
    first, *others = taken.children
    assert first["what"] == "plan of the GGUFs"  # what foretells
    assert len(others) == 10  # reload, merge, 4-bit, comparison, two conversions, three types, LoRA
    for child in others:
        print(child["what"], child["foretold_bytes"] >> 20, child["peak_anonymous_bytes"] >> 20)
    for child in others:  # a peak of a short life may fall between two looks where the cores are busy
        assert child["peak_anonymous_bytes"] == pytest.approx(child["foretold_bytes"], rel=0.15), child["what"]
