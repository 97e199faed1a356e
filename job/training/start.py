"""Where a training goes on from an adapter: whether it fits the base, and its weights in the fresh adapter's place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from job.errors import Fault, InputError
from job.source.adapter import WEIGHTS
from job.spec import LoraSpec
from job.training.backend import adapter_options
from job.training.methods.reference import GIVEN
from job.weights.layout import read_tensors

Shapes = Mapping[str, tuple[int, ...]]


def require_fits(adapter: Path, base: Path, lora: LoraSpec, where: str) -> None:
    """Raises `InputError` unless the adapter has just the tensors that one of `lora` on `base` has, as far as its
    config tells: no weights of the base are needed.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **adapter_options(lora)))
    found = {tensor.name: tensor.shape for tensor in read_tensors(adapter / WEIGHTS)[0]}
    require_equal(found, shapes_of(model), where)


def shapes_of(model: Any) -> Shapes:
    """Of the adapter of a PEFT model, by the names under which it is stored."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def require_equal(found: Shapes, wanted: Shapes, where: str) -> None:
    """Raises `InputError` for a tensor that only one of both has, or that has another shape."""
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if names:
        name = names[0]
        said = [f"{name} {shapes.get(name, 'not there')}" for shapes in (found, wanted)]
        raise InputError(
            Fault("the adapter does not fit this base and the section lora", where=where,
                  found=f"{len(names)} tensors differ, first {said[0]}", expected=said[1],
                  hint="Write lora.targets and model.source as the adapter was trained")
        )  # fmt: skip


def go_on_from(model: Any, adapter: Path, where: str) -> None:
    """Puts the given weights in the place of the fresh ones."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(adapter / WEIGHTS)
    require_equal({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes_of(model), where)
    set_peft_model_state_dict(model, weights)
    setattr(model, GIVEN, adapter / WEIGHTS)
