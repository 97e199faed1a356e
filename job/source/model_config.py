"""Whether transformers can build the model that a config.json describes: tried before its weights are paid for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from job.errors import Fault, InputError
from job.source.model_files import CONFIG, read_object

ATTENTION = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
OWN_ATTENTION = ("eager", "sdpa", "flex_attention")  # what transformers has without other packages
COUNTED = re.compile(r"(?:^|_)(?:layers?|experts)$")
PACKED_WITH = {  # forms of packed weights, each with the package that unpacks them
    "aqlm": "aqlm",
    "auto-round": "auto_round",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed_tensors",
    "eetq": "kernels",
    "gptq": "gptqmodel",
    "hqq": "hqq",
    "quanto": "optimum",
    "quark": "quark",
    "vptq": "vptq",
}
MOST = 5000  # of what is built one by one
SHARES = re.compile(r"(?:dropout|dropout_prob|pdrop)$")
# What a training and its answers need.
SETTLED = {"return_dict": True, "output_attentions": False, "is_encoder_decoder": False}
POSITIVE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def check_config(folder: Path, where: str) -> None:
    """Raises `InputError` for a config.json with values that no model can be made of: wrong types, sizes that do not
    divide, names that transformers does not know, an attention kernel that it would have to fetch. `where`: its
    model's place in the spec. Imports torch.
    """
    _check(folder, where, build=True)


def check_values(folder: Path, where: str) -> None:
    """The same without torch: the config alone, and no model of it."""
    _check(folder, where, build=False)


def _check(folder: Path, where: str, build: bool) -> None:
    config = read_object(folder / CONFIG)
    faults = [*_attention(config, ""), *_sizes(config), *_packing(config.get("quantization_config"))]
    if not faults:
        faults = _refusal(folder, build)
    if faults:
        hint = f"Correct {CONFIG}, or take another copy of the model"
        raise InputError(
            *(Fault(f"{CONFIG}: {what}", where=where, found=found, expected=e, hint=hint) for what, found, e in faults)
        )


def _packing(packed: Any) -> Iterator[tuple[str, str, str]]:
    if packed is not None and not isinstance(packed, dict):
        yield "quantization_config is not an object", ascii(packed)[:80], "an object with a quant_method"
        return
    form = str((packed or {}).get("quant_method"))
    package = PACKED_WITH.get(form)
    if package and not find_spec(package):
        expected = "weights of 16 bits, or packed by bitsandbytes"
        yield f"the weights are packed as {form}, and {package} is not installed", form, expected


def _attention(section: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Anywhere in it, for models of several parts have a config in their config."""
    if not isinstance(section, dict):
        return
    for key, value in section.items():
        if key in ATTENTION and value is not None and value not in OWN_ATTENTION:
            yield f"{path}{key} is not an attention of transformers' own", ascii(value), " or ".join(OWN_ATTENTION)
        yield from _attention(value, f"{path}{key}.")


def _sizes(config: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What transformers takes and then builds something else of, or fails of in the first step."""
    text = config.get("text_config")
    section = text if isinstance(text, dict) else config
    for key, needed in SETTLED.items():
        if section.get(key, needed) is not needed:
            yield f"{key} makes a model that cannot be trained", ascii(section[key])[:80], str(needed).lower()
    for key in POSITIVE:
        if type(section.get(key)) is int and section[key] <= 0:
            yield f"{key} is not a size", str(section[key]), "a number above zero"
    for key, value in section.items():
        if type(value) is int and value > MOST and COUNTED.search(key):
            yield f"{key} is beyond any model", str(value), f"at most {MOST}"
        if isinstance(value, int | float) and SHARES.search(key) and not 0 <= value <= 1:
            yield f"{key} is not a share", str(value), "a number from 0 to 1"
    heads, shared = section.get("num_attention_heads"), section.get("num_key_value_heads")
    if type(heads) is int and type(shared) is int and (shared <= 0 or heads % shared):
        yield "num_key_value_heads does not divide num_attention_heads", f"{shared} and {heads}", "a divisor"


def _refusal(folder: Path, build: bool) -> list[tuple[str, str, str]]:
    """What transformers says when it reads the config and, with `build`, makes the model without memory for its
    weights; nothing if it can.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    wrong = (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if build:
            _build(config)
    except (*wrong, RuntimeError, OSError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[1] if isinstance(error, StrictDataclassError) and len(lines) > 1 else (lines or [""])[0]
        return [("transformers can make no model of it", f"{type(error).__name__}: {said}", "values that it takes")]
    return []


def _build(config: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=False)
