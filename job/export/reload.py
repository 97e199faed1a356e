"""What was stored, opened as a stranger would: plain transformers and PEFT, in a process that never saw the training.

    python -m job.export.reload REQUEST_JSON RESULT_JSON

The logits of one row are compared with those of the trained model (`report/probe.safetensors`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from job.errors import Fault, GateError
from job.export import logits as merge_logits
from job.host.child import serve
from job.training.precision import REOPENED, compute_dtype, keep_layout, name_of, quantisation


def compare(base: Path, adapter: Path | None, probe: Path, precision: str, device: str) -> dict[str, float]:
    """Loads base and adapter, or the whole weights in `base`, in the precision of the training.

    Returns the figures of `merge_logits.Comparison`. Raises `GateError` if the logits are others.
    """
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    dtype = compute_dtype(device)
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        quantization_config=quantisation(precision, dtype),
        device_map={"": device},
        local_files_only=True,
    )
    model = keep_layout(PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
    limits = REOPENED[name_of(dtype)]
    stored = load_file(probe)
    with torch.no_grad():
        logits = model(input_ids=stored["input_ids"].to(device)).logits[0].float().cpu()
    found = merge_logits.compare(stored["logits"].numpy(), logits.numpy())
    for name, figure, limit in (
        ("logits differ by", found.max_logit_difference, limits.logit_ratio * found.largest_logit),
        ("divergence in nats a token of", found.kl, limits.kl),
    ):
        if not figure <= limit:
            what, place = ("adapter does", "adapter/adapter_model.safetensors") if adapter else ("weights do", "merged")
            raise GateError(Fault(f"the stored {what} not answer as the trained model did", where=place,
                                  found=f"{name} {figure:.4g}", expected=f"at most {limit:.4g}"))  # fmt: skip
    return asdict(found)


def handle(request: dict[str, Any]) -> dict[str, Any]:
    adapter = request["adapter"] and Path(request["adapter"])
    return compare(Path(request["base"]), adapter, Path(request["probe"]), request["precision"], request["device"])


if __name__ == "__main__":
    serve(handle)
