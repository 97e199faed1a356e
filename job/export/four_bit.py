"""The merged model packed in 4 bits by bitsandbytes: NF4 with double quantisation, as others load it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import GateError
from job.export.adapter import files_by_key
from job.export.logits import open_model
from job.host.child import serve
from job.plan.host_memory import SHARD_BYTES
from job.source.model_files import CONFIG, INDEX
from job.training.precision import half_precision, quantisation


@dataclass(frozen=True)
class Conversion:
    """The folder of the merge, and the one to write its other form to."""

    merged: Path
    target: Path
    device: str


def quantise_merged(merged: Path, target: Path, device: str) -> None:
    """Writes the model of folder `merged` as NF4, with its tokenizer and generation config, to the new `target`."""
    from transformers import AutoModelForCausalLM

    half = half_precision(device)
    model = AutoModelForCausalLM.from_pretrained(
        merged,
        dtype=half,
        quantization_config=quantisation("4bit", half),
        device_map={"": device},
        local_files_only=True,
        use_safetensors=True,
    )
    model.save_pretrained(target, max_shard_size=SHARD_BYTES)
    for path in merged.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (CONFIG, INDEX):
            shutil.copyfile(path, target / path.name)
    files_by_key(target)


def reopen(folder: Path, device: str) -> Any:
    """The packed model. Raises `GateError` unless every linear layer but the output matrix is packed as NF4."""
    from bitsandbytes.nn import Linear4bit
    from torch.nn import Linear

    model = open_model(folder, "auto", device)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    plain = [n for n, m in linear.items() if not isinstance(m, Linear4bit) and m is not model.get_output_embeddings()]
    packed = [n for n, m in linear.items() if isinstance(m, Linear4bit) and m.weight.quant_type == "nf4"]
    if plain or not packed:
        found = f"{len(plain)} layers of {len(linear)} are not, first {plain[0]}" if plain else "no 4-bit layer"
        raise GateError(
            "this model is not in 4-bit", where=folder.name, found=found, expected="every linear layer as NF4"
        )
    return model


def handle(request: Conversion) -> None:
    quantise_merged(request.merged, request.target, request.device)


if __name__ == "__main__":
    serve(handle)
