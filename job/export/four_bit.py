"""The merged model packed in 4 bits by bitsandbytes: NF4 with double quantisation, as others load it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from job.export.adapter import files_by_key
from job.host.child import serve
from job.plan.host_memory import SHARD_BYTES
from job.source.model_files import CONFIG, INDEX
from job.training.precision import half_precision, quantisation


def quantise_merged(merged: Path, target: Path, device: str) -> None:
    """Writes the model of folder `merged` as NF4 to the new folder `target`, with the same tokenizer and generation
    config.
    """
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


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: {"merged", "target": folders, "device"} → {"bytes" of the weights}."""
    target = Path(request["target"])
    quantise_merged(Path(request["merged"]), target, request["device"])
    return {"bytes": sum(path.stat().st_size for path in target.glob("*.safetensors"))}


if __name__ == "__main__":
    serve(handle)
