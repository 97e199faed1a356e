"""The stored adapter, opened as a stranger would: plain transformers and PEFT, in a process that never saw the training.

    python -m job.export.reload REQUEST_JSON RESULT_JSON

The logits of one row are compared with those of the trained model (`report/probe.safetensors`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from job.child import serve
from job.errors import Fault, GateError

LOGIT_RATIO = {"cpu": 1e-3, "cuda": 0.06}  # of the largest logit; on a GPU, bf16 sums in another order and fused kernels
ADAPTER = "adapter_model.safetensors"


def compare(base: Path, adapter: Path, probe: Path, precision: str, device: str) -> dict[str, float]:
    """Loads base and adapter in the precision of the training. Raises `GateError` if the logits are others.

    Figures: `max_logit_difference`, `largest_logit`, and the share of positions with the `same_top_token`.
    """
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from job.backend import compute_dtype, quantisation

    dtype = compute_dtype(device)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, quantization_config=quantisation(precision, dtype), device_map={"": device}, local_files_only=True
    )
    model = PeftModel.from_pretrained(model, adapter).eval()
    stored = load_file(probe)
    with torch.no_grad():
        logits = model(input_ids=stored["input_ids"].to(device)).logits[0].float().cpu()
    difference, largest = float((logits - stored["logits"]).abs().max()), float(stored["logits"].abs().max())
    same = float((logits.argmax(-1) == stored["logits"].argmax(-1)).float().mean())
    limit = LOGIT_RATIO[device] * largest
    if not difference <= limit:
        raise GateError(Fault("the stored adapter does not answer as the trained model did", f"adapter/{ADAPTER}",
                              f"logits differ by {difference:.4g}", f"at most {limit:.4g}"))  # fmt: skip
    return {"max_logit_difference": difference, "largest_logit": largest, "same_top_token": same}


def handle(request: dict[str, Any]) -> dict[str, Any]:
    base, adapter, probe = (Path(request[key]) for key in ("base", "adapter", "probe"))
    return compare(base, adapter, probe, request["precision"], request["device"])


if __name__ == "__main__":
    serve(handle)
