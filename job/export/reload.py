"""What was stored, opened as a stranger would: plain transformers and PEFT, in a process that never saw the training.

    python -m job.export.reload REQUEST_JSON RESULT_JSON

The logits of one row are compared with those of the trained model (`report/probe.safetensors`). What it says of the
compared rows is then, to every export, what the trained model says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import GateError
from job.export import logits as merge_logits
from job.export.reference_logits import Measure, answers, measured, read, write_reference
from job.gguf.quality import ModelStep
from job.host.child import serve
from job.training.precision import compute_dtype, keep_layout, quantisation, reopened_limits


@dataclass(frozen=True)
class ReloadRequest:
    """The base with the adapter's folder, or the folder of whole weights, in the `precision` of the training. `probe`
    is None in a later try, which has proven it before; `trained` is the file to write.
    """

    measure: Measure
    base: Path
    adapter: Path | None
    precision: str
    device: str
    probe: Path | None
    trained: Path


@dataclass(frozen=True)
class Reloaded:
    """Modules that are held in 4 bits, what was measured, the answers as token ids, the comparison with the probe, and
    the log-probabilities of what was read.
    """

    packed: list[str]
    measured: ModelStep
    answers: list[list[int]]
    probe: merge_logits.Comparison | None
    sums: list[list[float]]


def open_trained(base: Path, adapter: Path | None, precision: str, device: str) -> Any:
    """Base and adapter, or the whole weights in `base`, in the precision of the training."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dtype = compute_dtype(device)
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        quantization_config=quantisation(precision, dtype),
        device_map={"": device},
        local_files_only=True,
    )
    return keep_layout(PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def compare(model: Any, adapter: Path | None, precision: str, probe: Path) -> merge_logits.Comparison:
    """With the logits in `probe`. Raises `GateError` if they are others."""
    import torch
    from safetensors.torch import load_file

    stored = load_file(probe)
    limits = reopened_limits(precision, model.device.type)
    with torch.no_grad():
        logits = model(input_ids=stored["input_ids"].to(model.device)).logits[0].float().cpu()
    found = merge_logits.compare(stored["logits"].numpy(), logits.numpy())
    for name, figure, limit in (
        ("logits differ by", found.max_logit_difference, limits.logit_ratio * found.largest_logit),
        ("divergence in nats a token of", found.kl, limits.kl),
    ):
        if not figure <= limit:
            what, place = ("adapter does", "adapter/adapter_model.safetensors") if adapter else ("weights do", "merged")
            raise GateError(f"the stored {what} not answer as the trained model did", where=place,
                            found=f"{name} {figure:.4g}", expected=f"at most {limit:.4g}")  # fmt: skip
    return found


def packed_modules(model: Any) -> list[str]:
    """Modules whose weights are held in 4 bits, named as without PEFT."""
    from bitsandbytes.nn import Linear4bit

    names = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    return [name.removeprefix("base_model.model.").removesuffix(".base_layer") for name in names]


def handle(request: ReloadRequest) -> Reloaded:
    """Compares, measures, and writes `trained`."""
    model = open_trained(request.base, request.adapter, request.precision, request.device)
    probed = None if request.probe is None else compare(model, request.adapter, request.precision, request.probe)
    asked, sums = answers(model, request.measure), read(model, request.measure)
    part = request.trained.with_suffix(".part")
    logits, _ = write_reference(model, request.measure, part, answered=False)  # the merge is asked
    part.replace(request.trained)
    return Reloaded(packed_modules(model), measured(logits, request.measure, None), asked, probed, sums)


if __name__ == "__main__":
    serve(handle)
