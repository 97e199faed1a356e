"""Which input channels of each linear layer matter: mean squared activations on the job's own rows, as llama.cpp's
imatrix.

File layout: llama.cpp, tools/imatrix (GGUF output): `<tensor>.in_sum2` sums of squares, `<tensor>.counts` tokens.
Converters permute rows of a weight (its outputs, for rotary embeddings) but never its columns, so that a channel keeps
its number from here to llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from job.errors import GateError
from job.export.logits import batches
from job.gguf.quantise import COUNTS, SUMS
from job.plan.host_memory import IMATRIX_TOKENS

# Like llama.cpp's own tool: the output matrix is quantised finely, and worse with a matrix than without
LAYERS = "blk."
DATASET = "training rows of the job"


def mean_squares(model: Any, rows: list[list[int]]) -> tuple[dict[str, Any], int]:
    """Module name → mean over all tokens of `rows` of its squared inputs, (channels) float64; and the number of tokens.

    Every linear layer that a forward pass of `model` runs through is in it; padding is left out.
    """
    import torch
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    sums: dict[str, Any] = {}
    mask = torch.empty(0)

    def add(name: str, inputs: Any) -> None:
        found = inputs[mask].float().square().sum(0).double()
        sums[name] = sums[name] + found if name in sums else found

    hooks = [
        module.register_forward_pre_hook(lambda _, arguments, name=name: add(name, arguments[0]))
        for name, module in model.named_modules()
        if isinstance(module, Linear | Conv1D)
    ]
    with torch.no_grad():
        for _, ids, marked in batches(rows, IMATRIX_TOKENS):
            mask = marked.to(model.device).bool()
            model.base_model(input_ids=ids.to(model.device), attention_mask=mask.long(), use_cache=False)
    for hook in hooks:
        hook.remove()
    tokens = sum(map(len, rows))
    return {name: total.cpu() / tokens for name, total in sums.items()}, tokens


def gguf_names(model_dir: Path, modules: Iterable[str]) -> dict[str, str]:
    """Module name → name of its weight in a GGUF of this model, for layers of the stack that have one."""
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelType, get_model_architecture

    config = json.loads((model_dir / "config.json").read_bytes())
    architecture = get_model_class(get_model_architecture(config, ModelType.TEXT)).model_arch
    text = config.get("text_config", config)
    depth = next(text[key] for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in text)
    known = gguf.get_tensor_name_map(architecture, depth)
    found = {
        name: known.get_name(f"{name.replace('language_model.', '')}.weight", try_suffixes=(".weight",))
        for name in modules
    }
    return {name: tensor for name, tensor in found.items() if tensor and tensor.startswith(LAYERS)}


def write_imatrix(model: Any, model_dir: Path, rows: list[list[int]], path: Path) -> int:
    """Measures `model`, loaded from `model_dir`, on `rows` of token ids and writes the GGUF imatrix; returns its
    tensors.

    Raises `GateError` if an activation is not a finite number or no layer is one of the GGUF's.
    """
    import numpy
    from gguf import GGUFWriter

    means, tokens = mean_squares(model, rows)
    names = gguf_names(model_dir, means)
    if not names:
        raise GateError(
            "no layer of this model has a counterpart in its GGUF", where=path.name, found=f"{len(means)} linear layers"
        )
    writer = GGUFWriter(path=None, arch="")
    writer.kv_data[0].clear()  # it names an architecture, which an imatrix has not
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [DATASET])
    writer.add_uint32("imatrix.chunk_count", len(rows))
    writer.add_uint32("imatrix.chunk_size", max(map(len, rows)))
    for module, tensor in sorted(names.items(), key=lambda item: item[1]):
        mean = means[module].numpy()
        if not numpy.isfinite(mean).all():
            raise GateError(f"activations of {module} are not finite numbers", where=path.name)
        writer.add_tensor(tensor + SUMS, (mean * tokens).astype(numpy.float32)[None])
        writer.add_tensor(tensor + COUNTS, numpy.array([[tokens]], numpy.float32))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(names)
