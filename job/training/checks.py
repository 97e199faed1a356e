"""Whether what an engine loaded is what was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from job.errors import CapacityError, Fault, InputError
from job.plan.choice import Choice
from job.spec import JobSpec, LoraSpec, ModelSpec
from job.training.precision import compute_dtype, name_of


def require_compute_dtype(model: Any, device: str) -> str:
    """The number type that `model` really computes in. Raises `CapacityError` if it is not the device's own."""
    found, wanted = (name_of(dtype) for dtype in (model.get_input_embeddings().weight.dtype, compute_dtype(device)))
    if device == "cpu" and found != wanted:  # on a GPU, an engine may keep a part of the model in fp32
        raise CapacityError(
            "the engine computes in another number type on this device",
            where="/model/backend",
            found=found,
            expected=wanted,
        )
    return found


def check_precision(model: Any, spec: ModelSpec, device: str) -> None:
    """Compares what was loaded with what was asked: engines fall back to 16-bit with no more than a message."""
    found = (
        "4bit"
        if getattr(model, "is_loaded_in_4bit", False)
        else "8bit"
        if getattr(model, "is_loaded_in_8bit", False)
        else "16bit"
    )
    wanted = "16bit" if spec.precision == "full" else spec.precision
    if found != wanted:
        raise CapacityError(
            f"the model was loaded in another precision on this {device}",
            where="/model/precision",
            found=found,
            expected=wanted,
            hint="8bit needs a GPU; 4bit needs a base that is not quantised already",
        )


def check_complete(missing: Iterable[str]) -> None:
    """Raises `InputError` for tensors that the files lack: the loader makes them up at random, with a warning."""
    # Made by 8-bit loading itself
    names = sorted(name for name in missing if not name.endswith((".SCB", ".weight_format")))
    if names:
        found = f"{len(names)} tensors missing, first {names[0]}"
        raise InputError(
            "the weights are not those of this model",
            where="/model/source",
            found=found,
            expected="every tensor that config.json implies",
        )


def check_packed_shapes(model: Any) -> None:
    """Raises `InputError` for a matrix of another shape than its layer: packing lets it pass, the first step fails."""
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        state = getattr(module.weight, "quant_state", None) if isinstance(module, Linear4bit) else None
        if state is not None and tuple(state.shape) != (module.out_features, module.in_features):
            expected = f"{(module.out_features, module.in_features)}, as config.json implies"
            raise InputError(
                "a weight has another shape than its layer",
                where="/model/source",
                found=f"{name}: {tuple(state.shape)}",
                expected=expected,
            )


def check_targets(model: Any, lora: LoraSpec) -> None:
    """Raises `InputError` for a target or a module to save that the model does not have, naming those it has."""
    names = [name for name, _ in model.named_modules()]
    asked = (
        []
        if isinstance(lora.targets, str)
        else [(f"/lora/targets/{i}", target) for i, target in enumerate(lora.targets)]
    )
    asked += [(f"/lora/modules_to_save/{i}", module) for i, module in enumerate(lora.modules_to_save)]
    missing = [
        (pointer, word) for pointer, word in asked if not any(n == word or n.endswith(f".{word}") for n in names)
    ]
    if missing:
        from torch.nn import Linear

        linear = sorted(
            {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, Linear)}
        )
        raise InputError(
            *(
                Fault("the model has no such layer", where=pointer, found=word, expected=f"one of {', '.join(linear)}")
                for pointer, word in missing
            )
        )


def does_not_fit(spec: JobSpec, choice: Choice) -> CapacityError:
    """Of a step that ran out of memory in the way that needs least."""
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
    return CapacityError(
        "the GPU has no memory for a training step",
        where="/training/batch_size",
        found=f"{choice.batch.rows} rows of up to {spec.model.max_seq_length} tokens, {free_bytes} of {total_bytes} bytes free",  # noqa: E501
        expected="a step that fits",
        hint="Lower model.max_seq_length or lora.r, leave gradient_checkpointing to auto, or use a larger GPU",
    )
