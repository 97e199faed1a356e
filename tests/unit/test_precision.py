"""One choice of number types for each device, and nothing in the environment that makes another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from job.training.environment import prepared_environment
from job.training.precision import MERGED_SLACK, REOPENED, reopened_limits
from tests.forking import ROOT

OTHERWISE = {
    "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7", "UNSLOTH_FORCE_FLOAT32": "1",
    "UNSLOTH_CPU_BF16": "1", "UNSLOTH_CPU_FP16": "1", "ONEDNN_DEFAULT_FPMATH_MODE": "BF16", "NVIDIA_TF32_OVERRIDE": "1",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "VLLM_BATCH_INVARIANT": "1",
}  # fmt: skip


def test_what_would_have_the_engines_compute_otherwise_is_not_honoured(tmp_path: Path) -> None:
    given = OTHERWISE | {
        "PATH": "/bin",
        "UNSLOTH_COMPILE_LOCATION": "/kept",
        "OMP_NUM_THREADS": "3",
        "TUNEJOB_DEVICE": "cpu",
    }
    prepared = prepared_environment(tmp_path, given)
    assert {name: prepared[name] for name in OTHERWISE if name in prepared} == {
        "UNSLOTH_CPU_BF16": "0",
        "UNSLOTH_CPU_FP16": "0",
    }
    assert (prepared["PATH"], prepared["OMP_NUM_THREADS"], prepared["UNSLOTH_COMPILE_LOCATION"]) == (
        "/bin",
        "3",
        "/kept",
    )
    assert (prepared["CUDA_VISIBLE_DEVICES"], prepared["UNSLOTH_FORCE_CPU"]) == ("", "1")


SET = """
import json, os, sys
from pathlib import Path
from job.training.environment import prepare_environment
ignored = prepare_environment(Path(sys.argv[1]))
print(json.dumps([ignored, {name: os.environ.get(name) for name in ignored}]))
"""


def test_what_is_not_honoured_is_named(tmp_path: Path) -> None:
    """Those that say what the job says anyway are not."""
    given = OTHERWISE | {"PATH": "/bin", "UNSLOTH_CPU_FP16": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SET, str(tmp_path)], env=given, capture_output=True, text=True, check=True, cwd=ROOT
    )
    ignored, found = json.loads(done.stdout)
    assert ignored == sorted(OTHERWISE.keys() - {"UNSLOTH_CPU_FP16"})
    assert found == dict.fromkeys(ignored) | {"UNSLOTH_CPU_BF16": "0"}


@pytest.mark.parametrize("table", [REOPENED, MERGED_SLACK])
def test_each_number_type_has_its_limits(table: dict[str, object]) -> None:
    assert table.keys() == {"float32", "bfloat16", "float16"}


def test_8_bits_have_limits_of_their_own() -> None:
    """Five times the largest of the three figures that were measured on a GPU, in nats a token."""
    assert reopened_limits("8bit", "cpu").kl > 5 * 0.01814
    assert reopened_limits("4bit", "cpu") == REOPENED["float32"]


def test_fp32_is_held_to_less_than_half_precision() -> None:
    assert REOPENED["float32"].logit_ratio < REOPENED["bfloat16"].logit_ratio / 100
    assert MERGED_SLACK["float32"] < MERGED_SLACK["bfloat16"]
