"""Trainings by reward whose answers vLLM gives, by the real command with vLLM's build for CPUs (`make vllm-test`)."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.flow.running import ROOT, Result, Running, fits_events, tiny, tunejob, valid_stats, write_spec
from tests.flow.test_grpo import changes
from tests.flow.test_preference import lines
from tests.smollm2 import model_dir

PACKAGES = next((ROOT / ".venv-vllm").glob("lib/python3*/site-packages"), None)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(PACKAGES is None, reason="vLLM is in .venv-vllm, which make vllm-test makes"),
]
BESIDE = {"PYTHONPATH": f"{ROOT}:{PACKAGES}"}
ROUNDING = 0.15  # nats a token, of weights in 16 bits; 0.06 to 0.11 were seen
STEPS = 8


def spec_of(folder: Path, **further: Any) -> str:
    spec = changes(folder, max_steps=STEPS, learning_rate=0.03) | {"/output/checkpoints": {"every_steps": 2}} | further
    spec["/training"]["grpo"] |= {"use_vllm": True, "vllm_gpu_memory_utilization": 0.2}
    return write_spec(folder / "spec.json", tiny(folder / "out", spec))


def run(spec: str, folder: Path) -> Result:
    result = tunejob("run", spec, scratch=folder / "scratch", extra=BESIDE, forked=False)
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run nobody disturbed, at a rate at which the model soon is another one."""
    folder = tmp_path_factory.mktemp("whole")
    assert not fits_events(run(spec_of(folder), folder).events)
    return folder / "out"


def test_it_answers_with_the_weights_of_each_step(whole: Path) -> None:
    """What vLLM draws is as likely to the model that is trained, however far that has gone from the base."""
    steps = lines(whole)
    assert len(steps) == STEPS
    assert steps[-1]["kl"] > 1
    assert all(0 < line["sampling_difference"] < ROUNDING for line in steps)
    assert all(0 <= line["reward_length"] <= 1 and 0 < line["answer_tokens"] <= 8 for line in steps)
    assert len({line["reward"] for line in steps}) > 1
    assert valid_stats(whole / "stats.json")["training"]["steps"] == STEPS
    adapter = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert all(tensor.any() for tensor in adapter.values()), "B is zero where nothing was learned"


def test_a_run_that_is_killed_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    running = Running(("run", spec), tmp_path / "scratch", BESIDE, forked=False)
    running.wait_until(lambda r: r.says('"checkpoint", "step": 4'), seconds=400)  # vLLM compiles the model first
    assert running.kill().exit_code == -signal.SIGKILL
    (event,) = run(spec, tmp_path).named("resume")
    assert event["step"] >= 4
    curve = ("step", "loss", "grad_norm", "reward", "answer_tokens", "sampling_difference")
    found, wanted = ([[line[key] for key in curve] for line in lines(output)] for output in (tmp_path / "out", whole))
    assert found == wanted
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


def test_a_real_models_answers_end_at_its_stop_tokens(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path, **{"/model/source": str(model_dir()), "/data/chat_template": "model", "/lora": {"r": 8, "alpha": 16},
                     "/training/max_steps": 2, "/training/grpo/max_new_tokens": 32},
    )  # fmt: skip
    run(spec, tmp_path)
    for line in lines(tmp_path / "out"):
        assert line["cut_answers"] < 1 / 2
        assert 1 < line["answer_tokens"] < 32
