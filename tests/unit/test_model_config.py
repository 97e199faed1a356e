"""A config.json that no model can be made of is refused before its weights are paid for, with what is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from job.errors import InputError
from job.source import check_config
from job.source.model import FetchedModel, check_merge_base

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
}  # fmt: skip
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a whole number with a point": ({"max_position_embeddings": 2048.0}, "expected int, got float"),
    "text": ({"hidden_size": "64"}, "expected int, got str"),
    "nothing": ({"hidden_size": None}, "expected int, got NoneType"),
    "a switch": ({"tie_word_embeddings": "yes"}, "expected bool, got str"),
    "a list": ({"vocab_size": [1000]}, "expected int, got list"),
    "heads that do not divide": ({"num_attention_heads": 5, "num_key_value_heads": 5},
                                 "not a multiple of the number of attention heads"),
    "shared heads that do not divide": ({"num_key_value_heads": 3}, "does not divide num_attention_heads"),
    "no shared heads": ({"num_key_value_heads": 0}, "does not divide num_attention_heads"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is not a size"),
    "layers below zero": ({"num_hidden_layers": -1}, "num_hidden_layers is not a size"),
    "layers without end": ({"num_hidden_layers": 10**9}, "num_hidden_layers is beyond any model"),
    "answers that are tuples": ({"return_dict": False}, "return_dict makes a model that cannot be trained"),
    "an encoder besides": ({"is_encoder_decoder": True}, "is_encoder_decoder makes a model that cannot be trained"),
    "attention among the answers": ({"output_attentions": True},
                                    "output_attentions makes a model that cannot be trained"),
    "a layer of nothing": ({"intermediate_size": 0}, "intermediate_size is not a size"),
    "more than all dropped": ({"attention_dropout": 2.0}, "attention_dropout is not a share"),
    "less than nothing dropped": ({"model_type": "gpt2", "resid_pdrop": -0.1}, "resid_pdrop is not a share"),
    "experts without end": ({"model_type": "qwen3_moe", "num_experts": 10**9}, "num_experts is beyond any model"),
    "a size beyond numbers": ({"hidden_size": 10**30}, "TypeError"),
    "an activation nobody knows": ({"hidden_act": "swishy"}, "swishy"),
    "a rotation nobody knows": ({"rope_scaling": {"rope_type": "spiral", "factor": 2}}, "spiral"),
    "a rotation in words": ({"rope_theta": "large"}, "TypeError"),
    "a number type nobody knows": ({"dtype": "float17"}, "float17"),
    "a kernel of the Hub": ({"_attn_implementation": "kernels-community/flash-attn"},
                            "is not an attention of transformers' own"),
    "a kernel of a part": ({"text_config": {"_attn_implementation": "org/kernel@v1"}},
                           "text_config._attn_implementation"),
    "another package's attention": ({"attn_implementation": "flash_attention_2"}, "eager or sdpa"),
    "weights packed for a package that is not here": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "packed as gptq, and gptqmodel is not installed",
    ),
    "a packing in a list": ({"quantization_config": ["gptq"]}, "quantization_config is not an object"),
    "no language model": ({"model_type": "t5"}, "Unrecognized configuration class"),
}  # fmt: skip
RIGHT: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention of its own": {"_attn_implementation": "eager"},
    "no attention": {"_attn_implementation": None},
    "a model of parts": {"model_type": "gemma3", "text_config": {"hidden_size": 64, "num_attention_heads": 4}},
    "weights packed by bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "another architecture": {"model_type": "qwen3"},
    "no heads at all": {"model_type": "mamba"},
}


def written(folder: Path, changes: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_what_no_model_can_be_made_of_is_refused(name: str, tmp_path: Path) -> None:
    changes, says = WRONG[name]
    with pytest.raises(InputError) as refused:
        check_config(written(tmp_path, changes), "/model/source")
    assert says in str(refused.value)
    assert {fault.where for fault in refused.value.faults} == {"/model/source"}
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", RIGHT)
def test_what_transformers_takes_is_taken(name: str, tmp_path: Path) -> None:
    check_config(written(tmp_path, RIGHT[name]), "/model/source")


NF4 = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}


@pytest.mark.parametrize(
    ("base", "merge_base", "says"),
    [
        ({}, {}, "expected no merge_base"),
        (NF4, NF4, "the base for merging is quantised itself"),
        (NF4, {"hidden_size": 32}, "(found hidden_size 32); expected hidden_size 64"),
    ],
    ids=["of no use", "packed too", "another model"],
)
def test_a_base_that_nothing_can_be_merged_into_is_refused(
    base: dict[str, Any], merge_base: dict[str, Any], says: str, tmp_path: Path
) -> None:
    models = []
    for name, changes in (("base", base), ("merge_base", merge_base)):
        (tmp_path / name).mkdir()
        path = written(tmp_path / name, changes)
        models.append(FetchedModel(str(path), f"/model/{name}", path, name, None, None, (), (), 0))
    with pytest.raises(InputError) as refused:
        check_merge_base(*models)
    assert says in str(refused.value)
    assert refused.value.faults[0].where == "/model/merge_base"
