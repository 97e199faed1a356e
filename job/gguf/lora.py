"""A PEFT adapter as a LoRA GGUF, which llama.cpp applies on top of a GGUF of the base.

The converter may reorder or divide a weight's rows (rotary embeddings, fused projections). The same happens here to the
rows of B, found by sending row numbers through the converter; A, which meets the input channels, stays as it is.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.gguf.convert import loaded_converter
from job.gguf.header import Written, read_header
from job.gguf.types import TYPES

PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
BLOCK = re.compile(r"\.(\d+)\.")
POINTER = "/export/lora_gguf"


def inexpressible(config: Mapping[str, Any]) -> list[str]:
    """What in an `adapter_config.json` a LoRA GGUF has no form for."""
    settings = (
        "use_dora", "modules_to_save", "lora_bias", "rank_pattern", "alpha_pattern", "target_parameters",
        "trainable_token_indices", "fan_in_fan_out", "layer_replication",
    )  # fmt: skip
    found = [name for name in settings if config.get(name)]
    return found + (["bias"] if config.get("bias", "none") != "none" else [])


def write_lora(adapter: Path, model: Path, target: Path, type_name: str, name: str) -> Written:
    """Writes `target`; `model` is the base's or the merged folder (only its config and headers are read).

    Raises `InputError` if the adapter cannot be expressed so, or llama.cpp does not know the model.
    """
    import gguf

    started = time.monotonic()
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    if reasons := inexpressible(config):
        raise InputError(
            "this adapter cannot be a LoRA GGUF",
            where=POINTER,
            found=", ".join(reasons),
            expected="plain LoRA or rsLoRA",
        )
    with loaded_converter(model, target, type_name, name) as converter:
        writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[converter.model_arch])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        # llama.cpp scales by alpha / r; rsLoRA by alpha / sqrt(r)
        alpha = float(config["lora_alpha"]) * (math.sqrt(config["r"]) if config.get("use_rslora") else 1.0)
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_name(name)
        writer.add_file_type(TYPES[type_name].file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for module, a, b in _pairs(adapter / "adapter_model.safetensors"):
            for tensor, rows in _placed_rows(converter, module, len(b)):
                _add(writer, f"{tensor}.lora_a", a, type_name)
                _add(writer, f"{tensor}.lora_b", b[rows], type_name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Written.since(started, read_header(target, target.name))


def _pairs(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Each adapted module with A (r, inputs) and B (outputs, r) in fp32."""
    from safetensors.torch import load_file

    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(path).items():
        match = PART.fullmatch(name)
        if match is None:
            raise InputError(
                "this adapter cannot be a LoRA GGUF", where=POINTER, found=name, expected="pairs of lora_A and lora_B"
            )
        parts.setdefault(match["module"], {})[match["part"]] = tensor.float()
    for module, pair in sorted(parts.items()):
        yield module, pair["A"], pair["B"]


def _placed_rows(converter: Any, module: str, rows: int) -> Iterator[tuple[str, Any]]:
    """The GGUF tensors that the module's weight becomes, and which of its rows each takes, in order."""
    import torch

    block = BLOCK.search(module)
    numbers = torch.arange(rows, dtype=torch.float64).unsqueeze(1).expand(-1, 2).contiguous()
    try:
        placed = list(converter.modify_tensors(numbers, f"{module}.weight", int(block[1]) if block else None))
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise _misplaced(module, f"{type(error).__name__}: {error}") from error
    if not placed:
        raise _misplaced(module, "no tensor of the GGUF")
    for name, found in placed:
        order = found[:, 0].long() if found.dim() == 2 else torch.empty(0, dtype=torch.long)
        if found.shape != (len(order), 2) or not torch.equal(found, numbers[order.clamp(0, rows - 1)]):
            raise _misplaced(module, f"{name} is more than a choice of rows")
        yield name, order


def _misplaced(module: str, why: str) -> InputError:
    return InputError(
        f"llama.cpp cannot apply an adapter of {module}",
        where=POINTER,
        found=why,
        expected="a weight whose rows are kept or reordered",
    )


def _add(writer: Any, name: str, values: Any, type_name: str) -> None:
    """A row that the type's block does not divide is stored in 16 bits, as llama.cpp's own script does."""
    import gguf

    kind = gguf.GGMLQuantizationType[TYPES[type_name].tensor_type]
    if values.shape[-1] % TYPES[type_name].block:
        kind = gguf.GGMLQuantizationType.F16
    writer.add_tensor(name, gguf.quants.quantize(values.contiguous().numpy(), kind), raw_dtype=kind)
