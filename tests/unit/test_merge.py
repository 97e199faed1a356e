"""The streaming merge against PEFT's own, for every kind of adapter the spec offers, and what its check must catch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from job.errors import GateError, InputError
from job.export.adapter import name_base
from job.export.merge.check import sampled, steps_apart
from job.export.merge.write import TrainedBase, check_merged, merge_adapter, plan_of, read_base, unmergeable
from tests.tiny import BYTE_VOCABULARY, byte_tokenizer, random_adapter, small_base, tiny_dir

END_IDS = [2, 0]
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
BIASES = {"attention_bias": True, "tie_word_embeddings": True}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": (TIED, {}),
    "targets": (UNTIED, {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": (TIED, {"use_rslora": True}),
    "dora": (TIED, {"use_dora": True}),
    "bias-all": (BIASES, {"bias": "all", "target_modules": ["q_proj", "up_proj"]}),
    "bias-lora-only": (BIASES, {"bias": "lora_only", "target_modules": ["q_proj", "up_proj"]}),
    "embedding-tied": (TIED, {"modules_to_save": ["embed_tokens"]}),
    "head-tied": (TIED, {"modules_to_save": ["lm_head"]}),
    "both-tied": (TIED, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "both-kept-tied": (TIED, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "both-untied": (UNTIED, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "shards": (UNTIED, {"use_dora": True, "modules_to_save": ["lm_head"]}),
    "shards-untied": (TIED, {"modules_to_save": ["embed_tokens"]}),
    "fp16": (TIED | {"dtype": "float16"}, {}),
    "fp32": (TIED | {"dtype": "float32"}, {"use_rslora": True}),
}
SEPARATED = {"embedding-tied", "head-tied", "both-tied", "shards-untied"}


def open_both(base: Path, adapter: Path, merged: Path) -> tuple[Any, Any]:
    """PEFT's merge and ours, as fp32 models."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    by_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    ).merge_and_unload()
    ours, report = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return by_peft, ours


def tensors(folder: Path) -> dict[str, Any]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_peft_merges(kind: str, tmp_path: Path) -> None:
    settings, options = KINDS[kind]
    base = small_base(tmp_path / "base", shard="20KB" if "shards" in kind else "1GB", **settings)
    adapter = random_adapter(base, tmp_path / "adapter", **options)
    report = merge_adapter(base, adapter, tmp_path / "merged", END_IDS, "cpu")
    by_peft, ours = open_both(base, adapter, tmp_path / "merged")
    stored, expected = tensors(tmp_path / "merged"), by_peft.state_dict()
    for name, tensor in stored.items():
        assert steps_apart(tensor, expected[name]) <= 1, name
    changed = [name for name, tensor in tensors(base).items() if not torch.equal(tensor, stored[name])]
    assert report.tensors == len(stored)
    assert report.merged_tensors >= len(changed) > 0
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "merged").glob("*.safetensors"))
    assert ours.config.tie_word_embeddings == by_peft.config.tie_word_embeddings
    assert ours.config.tie_word_embeddings == (
        settings["tie_word_embeddings"] and kind not in ("embedding-tied", "head-tied", "both-tied", "shards-untied")
    )
    ids = torch.arange(3, 40)[None]
    wanted, got = by_peft(ids).logits, ours(ids).logits
    assert (wanted - got).abs().max() <= 0.02 * wanted.abs().max()


def test_layout_is_the_base_s(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", shard="20KB", **TIED)
    adapter = random_adapter(base, tmp_path / "adapter")
    merge_adapter(base, adapter, tmp_path / "merged", END_IDS, "cpu")
    files = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(files) >= 2
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == files
    for file in files:
        with safe_open(base / file, "pt") as before, safe_open(tmp_path / "merged" / file, "pt") as after:
            assert list(after.keys()) == list(before.keys())
            assert after.metadata() == before.metadata()
        assert (tmp_path / "merged" / file).stat().st_mode & 0o777 == 0o644
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]


def test_documents_are_as_trained(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", **TIED)
    adapter = random_adapter(base, tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}")
    merge_adapter(base, adapter, tmp_path / "merged", END_IDS, "cpu")
    from transformers import AutoTokenizer, GenerationConfig

    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == END_IDS
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == "{{ messages[0].content }}"
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "merged"))
    assert after == before | {"eos_token_id": END_IDS}
    assert not (tmp_path / "merged/adapter_config.json").exists()


def test_fan_in_fan_out(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=BYTE_VOCABULARY, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=2
    )
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    byte_tokenizer(tmp_path / "base")
    adapter = random_adapter(
        tmp_path / "base", tmp_path / "adapter", target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True
    )
    merge_adapter(tmp_path / "base", adapter, tmp_path / "merged", [2], "cpu")
    by_peft, ours = open_both(tmp_path / "base", adapter, tmp_path / "merged")
    ids = torch.arange(3, 40)[None]
    assert (by_peft(ids).logits - ours(ids).logits).abs().max() <= 0.02 * by_peft(ids).logits.abs().max()


# --------------------------------------------------------------------------------------------- what cannot be merged


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", **TIED)
    adapter = random_adapter(base, tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(InputError, match=r"/model/merge_base.*quantised"):
        merge_adapter(base, adapter, tmp_path / "merged", END_IDS, "cpu")
    assert not (tmp_path / "merged").exists()


def test_another_model_s_weights_are_refused(tmp_path: Path) -> None:
    adapter = random_adapter(small_base(tmp_path / "base", **TIED), tmp_path / "adapter")
    other = small_base(tmp_path / "other", head_dim=16, **TIED)
    with pytest.raises(InputError, match=r"/model/merge_base.*does not fit.*self_attn"):
        merge_adapter(other, adapter, tmp_path / "merged", END_IDS, "cpu")


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", **TIED)
    adapter = random_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    held = load_file(base / "model.safetensors")
    held["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(32, 32, dtype=torch.int8)
    save_file(held, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="I8"):
        merge_adapter(base, adapter, tmp_path / "merged", END_IDS, "cpu")


def test_adapters_of_other_kinds_are_refused(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", **TIED)
    adapter = random_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(InputError, match="lora_embedding"):
        merge_adapter(base, adapter, tmp_path / "merged", END_IDS, "cpu")


def test_unmergeable_names_modules_without_weights(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", shard="20KB", **TIED)
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts", "lm_head", "model.layers.2.mlp.up_proj"]
    assert unmergeable(base, modules, {}) == ["model.layers.0.mlp.experts", "model.layers.2.mlp.up_proj"]


def test_unmergeable_names_modules_that_were_packed_the_other_way_round(tmp_path: Path) -> None:
    """As bitsandbytes does it with GPT-2's; a run with such a base trained, and failed at the merge."""
    base = small_base(tmp_path / "base", **TIED)
    [(tensors, _)] = read_base(base).values()
    up = next(tensor for tensor in tensors if "up_proj" in tensor.name)
    name, shape = up.name.removesuffix(".weight"), (up.shape[0], up.shape[1])
    assert shape[0] != shape[1]
    assert unmergeable(base, [name], {name: shape}) == []
    assert unmergeable(base, [name], {name: shape[::-1]}) == [name]


def test_values_that_overflow_are_caught(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", dtype="float16", **TIED)
    adapter = random_adapter(base, tmp_path / "adapter", lora_alpha=1e8)
    with pytest.raises(GateError, match=r"not finite numbers.*inf or NaN"):
        merge_adapter(base, adapter, tmp_path / "merged", END_IDS, "cpu")


# --------------------------------------------------------------------------------------- what the check must catch


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base, adapter and merged: sharded, untied by training."""
    folder = tmp_path_factory.mktemp("sound")
    base = small_base(folder / "base", shard="20KB", **TIED)
    adapter = random_adapter(base, folder / "adapter", modules_to_save=["embed_tokens"])
    merge_adapter(base, adapter, folder / "merged", END_IDS, "cpu")
    return folder


@pytest.fixture
def merged(sound: Path, tmp_path: Path) -> Iterator[Path]:
    return shutil.copytree(sound / "merged", tmp_path / "merged")


def faults_of(sound: Path, merged: Path) -> str:
    with pytest.raises(GateError) as error:
        check_merged(
            sound / "base", sound / "adapter", merged, END_IDS, plan_of(sound / "base", sound / "adapter"), "cpu"
        )
    return str(error.value)


def file_of(folder: Path, tensor: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][tensor]


def change_tensor(folder: Path, name: str, change: Any) -> str:
    path = file_of(folder, name)
    held = load_file(path)
    held[name] = change(held[name])
    save_file(held, path, {"format": "pt"})
    return path.name


def test_a_sound_merge_passes(sound: Path, merged: Path) -> None:
    check_merged(sound / "base", sound / "adapter", merged, END_IDS, plan_of(sound / "base", sound / "adapter"), "cpu")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"])
def test_one_changed_bit_is_caught(sound: Path, merged: Path, name: str) -> None:
    def flip(tensor: Any) -> Any:
        tensor.view(torch.int16).view(-1)[-1] ^= 1
        return tensor

    file = change_tensor(merged, name, flip)
    assert (
        faults_of(sound, merged)
        == f"merged/{file}: {name} is not as it should be (found other bytes); expected equal bytes"
    )


def test_a_layer_left_unmerged_is_caught(sound: Path, merged: Path) -> None:
    name = next(n for n in sampled(plan_of(sound / "base", sound / "adapter")) if "down_proj" in n)
    original = load_file(file_of(sound / "base", name))[name]
    file = change_tensor(merged, name, lambda _: original)
    assert f"merged/{file}: {name} is not what PEFT merges (found " in faults_of(sound, merged)


def test_another_scaling_is_caught(sound: Path, merged: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(sound / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    with pytest.raises(GateError) as error:
        check_merged(sound / "base", adapter, merged, END_IDS, plan_of(sound / "base", adapter), "cpu")
    assert len(error.value.faults) == 7  # one of each kind of layer


def test_a_cut_shard_is_caught(sound: Path, merged: Path) -> None:
    path = file_of(merged, "model.layers.1.mlp.up_proj.weight")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1)
    found = faults_of(sound, merged)
    assert f"merged/{path.name}: this file is not whole" in found
    assert f"{size - 1} bytes" in found


def test_a_missing_shard_is_caught(sound: Path, merged: Path) -> None:
    path = file_of(merged, "model.norm.weight")
    path.unlink()
    assert f"merged/{path.name}: this file is not whole" in faults_of(sound, merged)


def test_a_missing_tensor_is_caught(sound: Path, merged: Path) -> None:
    path = file_of(merged, "lm_head.weight")
    held = load_file(path)
    del held["lm_head.weight"]
    save_file(held, path, {"format": "pt"})
    assert "lm_head.weight is missing" in faults_of(sound, merged)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("generation_config.json", "eos_token_id", 0),
        ("config.json", "eos_token_id", 2),
        ("config.json", "tie_word_embeddings", True),
    ],
)
def test_another_setting_is_caught(sound: Path, merged: Path, file: str, key: str, value: Any) -> None:
    document = json.loads((merged / file).read_text())
    (merged / file).write_text(json.dumps(document | {key: value}))
    found = faults_of(sound, merged)
    assert f"merged/{file}: {key} is not as trained (found {value!r}); expected {document[key]!r}" == found


def test_another_chat_template_is_caught(sound: Path, merged: Path) -> None:
    template = (merged / "chat_template.jinja").read_text()
    (merged / "chat_template.jinja").write_text(template + " ")
    assert "merged/chat_template.jinja: the chat template is not the trained one" in faults_of(sound, merged)


def test_another_tokenizer_is_caught(sound: Path, merged: Path) -> None:
    tokenizer = json.loads((merged / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"].pop(0)  # digits are no longer single
    (merged / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "merged/tokenizer.json: ids of a sample text is not as trained" in faults_of(sound, merged)


# ------------------------------------------------------------------------------------------------------------ memory

MEASURED = """
import sys
from pathlib import Path
import peft, torch, transformers
from transformers import AutoConfig, AutoTokenizer
from job.export.merge.write import merge_adapter
def peak():  # ru_maxrss would start with the parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10
before = peak()
merge_adapter(*map(Path, sys.argv[1:4]), [2], "cpu")
print(peak() - before)
"""


@pytest.mark.long  # tests/flow/test_everything.py holds the memory of a merge against its plan
def test_memory_stays_below_a_shard(tmp_path: Path) -> None:
    """700 MB in two shards: what the merge adds to the process stays below the larger of them."""
    from transformers import LlamaConfig

    hidden, inner, layers, rank = 2048, 6144, 5, 16
    settings = LlamaConfig(
        vocab_size=49_152,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        tie_word_embeddings=True,
    )
    for folder in ("base", "adapter"):
        (tmp_path / folder).mkdir()
    settings.save_pretrained(tmp_path / "base")
    byte_tokenizer(tmp_path / "adapter")
    square, tall = torch.randn(hidden, hidden).bfloat16(), torch.randn(inner, hidden).bfloat16()
    forms = {f"self_attn.{p}_proj": square for p in "qkvo"} | {
        "mlp.up_proj": tall,
        "mlp.gate_proj": tall,
        "mlp.down_proj": tall.T,
    }
    held = {f"model.layers.{i}.{name}": tensor for i in range(layers) for name, tensor in forms.items()}
    low_rank = {f"base_model.model.{n}.lora_A.weight": torch.randn(rank, t.shape[1]) for n, t in held.items()}
    low_rank |= {f"base_model.model.{n}.lora_B.weight": torch.randn(t.shape[0], rank) for n, t in held.items()}
    save_file(low_rank, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    config = {"lora_alpha": 16, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    weights = {f"{name}.weight": tensor.clone(memory_format=torch.contiguous_format) for name, tensor in held.items()}
    weights["model.embed_tokens.weight"] = torch.zeros(49_152, hidden, dtype=torch.bfloat16)
    names = sorted(weights)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]]
    for number, part in enumerate(shards):
        save_file(
            {name: weights[name] for name in part}, tmp_path / f"base/model-{number}.safetensors", {"format": "pt"}
        )
    index = {"weight_map": {name: f"model-{number}.safetensors" for number, part in enumerate(shards) for name in part}}
    (tmp_path / "base/model.safetensors.index.json").write_text(json.dumps(index))
    sizes = [path.stat().st_size for path in (tmp_path / "base").glob("*.safetensors")]
    assert sum(sizes) > 700e6
    command = [sys.executable, "-c", MEASURED, *(str(tmp_path / name) for name in ("base", "adapter", "merged"))]
    added = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0 < added < max(sizes)


# ------------------------------------------------------------------------------------- onto the base as it was trained


@pytest.fixture(scope="module")
def in_4_bits() -> Any:
    """The tiny model as a training in 4 bits holds it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.float32, quantization_config=nf4)


def linear_4_bit(model: Any) -> dict[str, Any]:
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


@pytest.mark.parametrize("case", ["every layer adapted", "some layers adapted", "packed in its files"])
def test_onto_the_trained_base_a_layer_is_what_its_4_bits_say_and_what_the_adapter_adds(
    case: str, in_4_bits: Any, tmp_path: Path
) -> None:
    from bitsandbytes.functional import dequantize_4bit

    targets: Any = "all-linear" if case == "every layer adapted" else ["q_proj", "down_proj"]
    adapter, folder = random_adapter(tiny_dir(), tmp_path / "adapter", target_modules=targets), tiny_dir()
    if case == "packed in its files":
        folder = tmp_path / "packed"
        in_4_bits.save_pretrained(folder)
    packed = linear_4_bit(in_4_bits)
    merge_adapter(tiny_dir(), adapter, tmp_path / "merged", END_IDS, "cpu", TrainedBase(folder, list(packed)))
    stored, base, update = (
        tensors(tmp_path / "merged"),
        tensors(tiny_dir()),
        load_file(adapter / "adapter_model.safetensors"),
    )
    assert len(packed) == 14
    for name, module in packed.items():
        exact = dequantize_4bit(module.weight.data, module.weight.quant_state)
        if (key := f"base_model.model.{name}.lora_A.weight") in update:
            exact = exact + 12 / 4 * update[key.replace("lora_A", "lora_B")] @ update[key]
        found = stored.pop(f"{name}.weight")
        assert steps_apart(found, exact) <= 1, name
        assert steps_apart(found, base[f"{name}.weight"].float()) > 10, f"{name} is the original"
    assert all(torch.equal(tensor, base[name]) for name, tensor in stored.items())


def test_a_merge_onto_another_base_than_was_trained_is_caught(in_4_bits: Any, tmp_path: Path) -> None:
    """The original base with its adapter is no merge onto the trained one; nor is one with a layer left out."""
    adapter = random_adapter(tiny_dir(), tmp_path / "adapter", target_modules=["q_proj"])
    merge_adapter(tiny_dir(), adapter, tmp_path / "merged", END_IDS, "cpu")
    plan = plan_of(tiny_dir(), adapter, "cpu", TrainedBase(tiny_dir(), list(linear_4_bit(in_4_bits))))
    with pytest.raises(GateError) as error:
        check_merged(tiny_dir(), adapter, tmp_path / "merged", END_IDS, plan, "cpu")
    messages = [fault.message for fault in error.value.faults]
    assert sum("is not what PEFT merges" in message for message in messages) == 1  # a sample of each kind of layer
    assert sum("is not as it should be" in message for message in messages) == 12


def test_a_packed_layer_that_the_files_do_not_name_is_refused(tmp_path: Path) -> None:
    adapter = random_adapter(tiny_dir(), tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"model\.layers\.0\.other\.weight.*merge_onto original"):
        plan_of(tiny_dir(), adapter, "cpu", TrainedBase(tiny_dir(), ["model.layers.0.other"]))


@pytest.mark.parametrize("layers", [["v_proj", "down_proj", "k_proj"], ["k_proj", "v_proj", "down_proj"], "all-linear"])
def test_the_adapters_settings_are_the_same_file_in_each_run(layers: list[str] | str, tmp_path: Path) -> None:
    """PEFT writes a set of layers, whose order changes with the hash seed of the process."""
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"target_modules": layers, "base_model_name_or_path": "/tmp/x"}), "utf-8")
    name_base(config, "org/name", None)
    expected = layers if isinstance(layers, str) else ["down_proj", "k_proj", "v_proj"]
    assert json.loads(config.read_text("utf-8")) == {
        "target_modules": expected,
        "base_model_name_or_path": "org/name",
        "revision": None,
    }
