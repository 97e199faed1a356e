"""The merged model packed in 4 bits by bitsandbytes: NF4 with double quantisation, as others load it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from job.child import serve
from job.export.adapter import readable
from job.source.model_files import CONFIG, INDEX

SHARD = "5GB"


def quantise_merged(merged: Path, target: Path, device: str) -> None:
    """Writes the model of folder `merged` as NF4 to the new folder `target`, with the same tokenizer and generation config."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    half = torch.bfloat16 if device == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
    packing = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=half)
    model = AutoModelForCausalLM.from_pretrained(
        merged, dtype=half, quantization_config=packing, device_map={"": device}, local_files_only=True, use_safetensors=True
    )
    model.save_pretrained(target, max_shard_size=SHARD)
    for path in merged.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (CONFIG, INDEX):
            shutil.copyfile(path, target / path.name)
    readable(target)


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: {"merged", "target": folders, "device"} → {"bytes" of the weights}."""
    target = Path(request["target"])
    quantise_merged(Path(request["merged"]), target, request["device"])
    return {"bytes": sum(path.stat().st_size for path in target.glob("*.safetensors"))}


if __name__ == "__main__":
    serve(handle)
