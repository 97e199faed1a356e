"""Given adapters: whether they fit the base, and their weights, alone or combined, in place of the fresh one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.source.given_adapter import SETTINGS, WEIGHTS, FetchedAdapter, scaled
from job.source.model_files import read_object
from job.spec import JobSpec
from job.training.backend import adapter_options
from job.training.methods.reference_model import GIVEN
from job.weights.layout import read_tensors

COMBINED = "combined"  # an adapter's name, for a moment

Shapes = Mapping[str, tuple[int, ...]]


def require_fits(adapter: FetchedAdapter, base: Path, spec: JobSpec) -> None:
    """Raises `InputError` unless the adapter has just the tensors that one of the section lora, of its own rank, has
    on `base`, as far as its config tells: no weights of the base are needed.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    if spec.lora is None:
        raise ValueError("the spec has no adapter")
    own = scaled(spec.lora, read_object(adapter.path / SETTINGS))
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **adapter_options(own)))
    found = {tensor.name: tensor.shape for tensor in read_tensors(adapter.path / WEIGHTS)[0]}
    require_equal(found, shapes_of(model), adapter.pointer)
    require_finite(adapter)
    if spec.model.combine and spec.model.combine.method.endswith("svd"):
        require_narrow(found, spec.lora.r)


def require_finite(adapter: FetchedAdapter) -> None:
    """Raises `InputError` for a weight that is not a number: what it would make of the base is none either."""
    from safetensors import safe_open

    with safe_open(adapter.path / WEIGHTS, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            if not tensors.get_tensor(name).isfinite().all():
                raise InputError("the adapter has weights that are not finite", where=adapter.pointer, found=name,
                                 expected="numbers")  # fmt: skip


def require_narrow(found: Shapes, rank: int) -> None:
    """Raises `InputError` where a layer of these matrices has no decomposition of so high a rank."""
    widths = [shape[1] if "lora_A" in name else shape[0] for name, shape in found.items()]
    if rank > min(widths):
        raise InputError("a layer of this base has no decomposition of this rank", where="/lora/r", found=str(rank),
                         expected=f"at most {min(widths)}")  # fmt: skip


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
        raise InputError("the adapter does not fit this base and the section lora", where=where,
                         found=f"{len(names)} tensors differ, first {said[0]}", expected=said[1],
                         hint="Write lora.targets and model.source as the adapter was trained")  # fmt: skip


def go_on_from(model: Any, adapter: FetchedAdapter) -> None:
    """Puts the given weights in the place of the fresh ones."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(adapter.path / WEIGHTS)
    require_equal({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes_of(model), adapter.pointer)
    set_peft_model_state_dict(model, weights)
    setattr(model, GIVEN, adapter.path / WEIGHTS)


def combine(model: Any, adapters: Sequence[FetchedAdapter], spec: JobSpec) -> None:
    """Makes the fresh adapter what PEFT makes of `adapters`, not kept. Random numbers are of `training.seed`."""
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import set_seed

    lora, how = spec.lora, spec.model.combine
    if lora is None or how is None:
        raise ValueError("the spec names no adapters to combine")
    names = [f"given{number}" for number in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        own = scaled(lora, read_object(adapter.path / SETTINGS))
        model.add_adapter(name, LoraConfig(task_type="CAUSAL_LM", **adapter_options(own)))
        set_peft_model_state_dict(model, load_file(adapter.path / WEIGHTS), adapter_name=name)
    set_seed(spec.training.seed)
    options = {"density": how.density, "majority_sign_method": how.sign or "total"}
    model.base_model.add_weighted_adapter(
        names, [each.weight for each in spec.model.adapters or ()], COMBINED, how.method, svd_rank=lora.r,
        svd_full_matrices=False, **options,
    )  # fmt: skip
    made = get_peft_model_state_dict(model, adapter_name=COMBINED, save_embedding_layers=False)
    set_peft_model_state_dict(model, made)
    for name in (*names, COMBINED):
        model.delete_adapter(name)
    model.set_adapter("default")
