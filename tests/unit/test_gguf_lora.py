"""A LoRA GGUF on its base equals the merge; adapters it cannot express are refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from job.errors import GateError, InputError
from job.gguf.check import check_lora
from job.gguf.convert import convert
from job.gguf.header import read_header
from job.gguf.lora import inexpressible, write_lora
from tests.ggufs import against, edit_number, write_reference
from tests.tiny import wide_dir

TIGHT = {"max_kl": 1e-3, "max_perplexity_rise": 0.01}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Adapted:
    """A random adapter of the wide model, the merge's reference logits, and the base's 16-bit GGUF."""

    def __init__(self, folder: Path, **settings: object) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_pretrained(wide_dir(), dtype=torch.float32)
        tuned = get_peft_model(
            model, LoraConfig(r=8, lora_alpha=16, target_modules=LAYERS, task_type="CAUSAL_LM", **settings)
        )
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(0, 0.05)
        self.adapter, self.base = folder / "adapter", folder / "base.gguf"
        tuned.save_pretrained(self.adapter)
        merged = folder / "merged"
        tuned.merge_and_unload().save_pretrained(merged)
        AutoTokenizer.from_pretrained(wide_dir()).save_pretrained(merged)
        self.reference = write_reference(merged, folder / "reference", 4)
        convert(wide_dir(), self.base, "bf16", "base", 1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return Adapted(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0"])
def test_on_its_base_it_is_the_merge(plain: Adapted, name: str, tmp_path: Path) -> None:
    report = write_lora(plain.adapter, wide_dir(), tmp_path / "lora.gguf", name, "tuned")
    checked = check_lora(plain.base, tmp_path / "lora.gguf", "gguf/lora.gguf", name, against(plain.reference, TIGHT))
    assert report.tensors == checked.file.tensors == 2 * 7 * 3
    assert checked.quality.kl < 2e-4
    assert checked.quality.same_top_token > 0.98


def test_without_it_the_base_is_another_model(plain: Adapted, tmp_path: Path) -> None:
    """The comparison above would notice an adapter that does nothing."""
    write_lora(plain.adapter, wide_dir(), tmp_path / "lora.gguf", "f32", "tuned")
    zero = edit_number(
        tmp_path / "lora.gguf", tmp_path / "zero.gguf", "adapter.lora.alpha", 0x37000000
    )  # 7.6e-06 as a float
    with pytest.raises(GateError, match=r"gguf/lora.gguf: it strays too far from the 16-bit model"):
        check_lora(plain.base, zero, "gguf/lora.gguf", "f32", against(plain.reference, TIGHT))


def test_rank_stabilised_scaling_is_kept(tmp_path: Path) -> None:
    adapted = Adapted(tmp_path, use_rslora=True)
    write_lora(adapted.adapter, wide_dir(), tmp_path / "lora.gguf", "f32", "tuned")
    assert read_header(tmp_path / "lora.gguf", "k").metadata["adapter.lora.alpha"] == pytest.approx(16 * math.sqrt(8))
    checked = check_lora(adapted.base, tmp_path / "lora.gguf", "k", "f32", against(adapted.reference, TIGHT))
    assert checked.quality.kl < 2e-4


def test_another_number_type_under_this_name_is_caught(plain: Adapted, tmp_path: Path) -> None:
    write_lora(plain.adapter, wide_dir(), tmp_path / "lora.gguf", "f16", "tuned")
    with pytest.raises(GateError, match=r"gguf/lora.gguf: 42 of 42 tensors are of another type .*F16.*expected F32"):
        check_lora(plain.base, tmp_path / "lora.gguf", "gguf/lora.gguf", "f32", against(plain.reference, TIGHT))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q": 4}}, "rank_pattern"),
    ],
)
def test_what_it_has_no_form_for_is_refused(plain: Adapted, settings: dict, reason: str, tmp_path: Path) -> None:
    config = json.loads((plain.adapter / "adapter_config.json").read_text()) | settings
    assert inexpressible(config) == [reason]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"/export/lora_gguf: this adapter cannot be a LoRA GGUF .found {reason}"):
        write_lora(tmp_path, wide_dir(), tmp_path / "lora.gguf", "f16", "tuned")
    assert not (tmp_path / "lora.gguf").exists()


def test_a_weight_outside_pairs_is_refused(plain: Adapted, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(plain.adapter / "adapter_model.safetensors")
    save_file(weights | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((plain.adapter / "adapter_config.json").read_bytes())
    with pytest.raises(InputError, match=r"found base_model.model.lm_head.weight"):
        write_lora(tmp_path, wide_dir(), tmp_path / "lora.gguf", "f16", "tuned")


def test_a_module_the_converter_does_not_know_is_refused(plain: Adapted, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = "base_model.model.model.layers.0.novel.lora_"
    save_file(
        {f"{name}A.weight": torch.zeros(8, 256), f"{name}B.weight": torch.zeros(256, 8)},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_bytes((plain.adapter / "adapter_config.json").read_bytes())
    with pytest.raises(InputError, match=r"llama.cpp cannot apply an adapter of model.layers.0.novel"):
        write_lora(tmp_path, wide_dir(), tmp_path / "lora.gguf", "f16", "tuned")
