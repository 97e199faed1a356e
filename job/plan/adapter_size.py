"""How large an adapter is."""

from __future__ import annotations

from math import prod

from job.spec import JobSpec
from job.weights.shapes import Shapes

ADAPTER_BYTES_PER_WEIGHT = 4  # adapters are stored as trained, at most fp32


def adapter_bytes(spec: JobSpec, shapes: Shapes) -> int:
    """Of the adapter as it is stored: low-rank matrices, and modules that are trained whole."""
    if spec.lora is None:
        return 0
    targets = spec.lora.targets
    low_rank = sum(
        spec.lora.r * (shape[0] + shape[1])
        for name, shape in shapes.matrices()
        if isinstance(targets, str) or any(name.removesuffix(".weight").endswith(target) for target in targets)
    )
    whole = sum(
        prod(shape)
        for name, (_, shape) in shapes.tensors.items()
        if any(f"{m}.weight" in name for m in spec.lora.modules_to_save)
    )
    return ADAPTER_BYTES_PER_WEIGHT * (low_rank + whole)
