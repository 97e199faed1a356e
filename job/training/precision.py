"""The number types of a computation: one choice for each device, and what two computations of one model may differ by.

A CPU computes in fp32 whatever instructions it has. bf16 instructions (AVX512-BF16, AMX) would make the demo's training
faster on some machines and its results different from all others; figures of both are in tests/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Unsloth and bitsandbytes look for these instructions on their own and would compute with them. Set before either is
# imported.
CPU_ENVIRONMENT = {"UNSLOTH_CPU_BF16": "0", "UNSLOTH_CPU_FP16": "0"}

FP32_BYTES = 4


@dataclass(frozen=True)
class Limits:
    """How far one model's logits, computed twice, may be apart: a part of the largest logit, and nats a token."""

    logit_ratio: float
    kl: float


# The trained model against its reopened files, by the type that both compute in. On the CPU the difference is 0.0
# where it was measured. On a GPU the training's fused kernels and the stock ones sum in another order, and one logit
# of millions may move far (by 0.065 of the largest in a random 8B model); there the divergence of the whole
# distribution is the sharper test.
REOPENED = {"float32": Limits(1e-3, 0.01), "bfloat16": Limits(0.25, 0.01), "float16": Limits(0.25, 0.01)}
# Weights in 8 bits are multiplied by activations in 8 bits, outliers apart: a difference in the last place moves an
# activation by a whole step. SmolLM2 on a GPU: 0.018 with Unsloth, 0.011 with plain PEFT; a 1B shape: 0.0038.
REOPENED_IN_8_BITS = Limits(0.25, 0.1)
# What a spec's limit of the merged logits, which holds for fp32, is multiplied by: two models in half precision
# differ by the rounding of each, too.
MERGED_SLACK = {"float32": 1.0, "bfloat16": 2.5, "float16": 2.5}


def reopened_limits(precision: str, device: str) -> Limits:
    return REOPENED_IN_8_BITS if precision == "8bit" else REOPENED[name_of(compute_dtype(device))]


def name_of(dtype: Any) -> str:
    """`torch.bfloat16` → bfloat16, the key of the tables above."""
    return str(dtype).removeprefix("torch.")


def half_precision(device: str) -> Any:
    """bf16, or fp16 on a GPU that does not have it."""
    import torch

    return torch.bfloat16 if device == "cpu" or torch.cuda.is_bf16_supported() else torch.float16


def compute_dtype(device: str) -> Any:
    """What a model is trained, evaluated and reopened in: fp32 on any CPU, half precision on a GPU."""
    import torch

    return torch.float32 if device == "cpu" else half_precision(device)


def quantisation(precision: str, dtype: Any) -> Any:
    """bitsandbytes' settings for a precision of the spec; None where weights stay 16-bit."""
    from transformers import BitsAndBytesConfig

    if precision == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return BitsAndBytesConfig(load_in_8bit=True) if precision == "8bit" else None


def keep_layout(model: Any) -> Any:
    """`model`, whose 4-bit layers stay as they are stored and compute in the type they were given.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 packs a weight anew at the first evaluation, for a kernel that
    computes in bf16 whatever it was asked for, and training through the packed weight is wrong.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def compute_in_fp32(model: Any) -> None:
    """TRL casts the adapter of a quantised model to bf16, which CPUs only emulate."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < FP32_BYTES:
            parameter.data = parameter.data.float()
