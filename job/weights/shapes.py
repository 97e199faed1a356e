"""What is known of a model from the headers of its files: names, number types and shapes of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from job.weights.layout import read_tensors

BYTES = {
    "F64": 8,
    "F32": 4,
    "BF16": 2,
    "F16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "BOOL": 1,
}
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # per weight: the code, its block's 8-bit scale, that scale's own
GGUF_NAMES = {"BF16": "bf16", "F16": "f16", "F32": "f32"}


@dataclass(frozen=True)
class Shapes:
    """The 16-bit model's tensors: name → (safetensors' word for the number type, shape)."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for _, shape in self.tensors.values())

    @property
    def bytes(self) -> int:
        return sum(BYTES[kind] * prod(shape) for kind, shape in self.tensors.values())

    @property
    def gguf_type(self) -> str:
        """The GGUF type that holds these weights as they are."""
        weights: Counter[str] = Counter()
        for kind, shape in self.tensors.values():
            weights[kind] += prod(shape)
        return GGUF_NAMES.get(weights.most_common(1)[0][0], "f16")

    def in_fp32(self) -> Shapes:
        """The same tensors, as a full fine-tune on the CPU stores them."""
        return Shapes({name: ("F32", shape) for name, (_, shape) in self.tensors.items()})

    @property
    def largest(self) -> int:
        """Weights of the largest tensor."""
        return max(self.sizes())

    def sizes(self) -> list[int]:
        """Weights of each tensor."""
        return [prod(shape) for _, shape in self.tensors.values()]

    @property
    def vocabulary(self) -> int:
        return max(shape[0] for name, (_, shape) in self.tensors.items() if "embed" in name or "wte" in name)

    def matrices(self) -> Iterable[tuple[str, tuple[int, int]]]:
        """The linear layers: what an adapter targets and NF4 packs."""
        return (
            (n, (s[0], s[1]))
            for n, (_, s) in self.tensors.items()
            if len(s) == 2 and "embed" not in n and "wte" not in n and "lm_head" not in n
        )


def read_shapes(folder: Path) -> Shapes:
    """From the safetensors headers of a model's folder; no weights are read."""
    return Shapes(
        {
            tensor.name: (tensor.dtype, tensor.shape)
            for path in folder.glob("*.safetensors")
            for tensor in read_tensors(path)[0]
        }
    )
