"""What is known of each optimiser that a spec may name."""

from __future__ import annotations

from dataclasses import dataclass

CPU_OPTIMIZER = "adamw_torch_fused"  # takes the place of those that have no kernels for a CPU


@dataclass(frozen=True)
class Optimizer:
    """`moment_bytes` per trained parameter, of all moments; None where there are two in the parameter's own type."""

    needs_gpu: bool
    moment_bytes: int | None


OPTIMIZERS = {
    "adamw_8bit": Optimizer(True, 2),
    "adamw_torch": Optimizer(False, None),
    "adamw_torch_fused": Optimizer(False, None),
    "paged_adamw_8bit": Optimizer(True, 2),
    "paged_adamw_32bit": Optimizer(True, 8),
    "lion_8bit": Optimizer(True, 1),
    "adafactor": Optimizer(False, 0),
    "sgd": Optimizer(False, 0),
}


def effective_optimizer(asked: str, device: str) -> str:
    """What trains in the place of `asked` on "cuda" or "cpu"."""
    return CPU_OPTIMIZER if device == "cpu" and OPTIMIZERS[asked].needs_gpu else asked


def moment_bytes(name: str, parameter_bytes: int) -> int:
    """Bytes of all moments of a parameter of `parameter_bytes`."""
    known = OPTIMIZERS[name].moment_bytes
    return 2 * parameter_bytes if known is None else known
