"""The base as it was trained on: matrices that the training held in NF4, as its forward pass multiplied by them.

NF4 with double quantisation: arXiv 2305.14314. A matrix is quantised whole, as its scales have one common offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.export.merge.changes import POINTER, Weights
from job.training.precision import compute_dtype, quantisation
from job.weights.layout import BLOCK_BYTES, Tensor, read_tensors


@dataclass(frozen=True)
class Dequantised:
    """A matrix that takes the place of the 16-bit `form`: `stored` in 16 bits and packed when it was loaded, or with
    the `parts` beside it packed in its file. Computed on `device`.
    """

    form: Tensor
    stored: Tensor
    parts: tuple[Tensor, ...]
    device: str

    @property
    def name(self) -> str:
        return self.form.name

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Any]]:
        """As `Tensor.blocks` of the form, in the type that the training computed in."""
        whole = self._whole()
        count = self.form.shape[0]
        step = rows or max(1, BLOCK_BYTES // (self.form.bytes // count))
        for first in range(0, count, step):
            yield first, whole[first : first + step]

    def _whole(self) -> Any:
        from bitsandbytes.functional import QuantState, dequantize_4bit
        from bitsandbytes.nn import Params4bit

        if not self.parts:
            dtype = compute_dtype(self.device)
            settings = quantisation("4bit", dtype)
            packed = Params4bit(
                self.stored.load().to(dtype),
                requires_grad=False,
                quant_type=settings.bnb_4bit_quant_type,
                compress_statistics=settings.bnb_4bit_use_double_quant,
            ).to(self.device)
            return dequantize_4bit(packed.data, packed.quant_state)
        parts = {part.name.removeprefix(f"{self.stored.name}."): _raw(part) for part in self.parts}
        state = QuantState.from_dict(parts, device=self.device)
        return dequantize_4bit(_raw(self.stored).to(self.device), state)


def _raw(tensor: Tensor) -> Any:
    from safetensors import safe_open

    with safe_open(tensor.path, "pt") as file:
        return file.get_tensor(tensor.name)


def weights_as_trained(
    trained: Path, placed: Mapping[str, Tensor], packed: Sequence[str], device: str
) -> dict[str, Weights]:
    """By the name of the tensor, the weights of the base in folder `trained` that differ from those of the 16-bit base
    `placed`: the `packed` modules' dequantised, and what another folder holds in 16 bits itself.

    Raises `InputError` for a packed module of which either has no weight.
    """
    held = {tensor.name: tensor for path in sorted(trained.glob("*.safetensors")) for tensor in read_tensors(path)[0]}
    names = [f"{module}.weight" for module in packed]
    missing = [name for name in names if name not in held or name not in placed]
    if missing:
        raise InputError(
            "the base has no weight of this name",
            where=POINTER,
            found=missing[0],
            expected="a weight for each 4-bit layer",
            hint="Choose export.merge_onto original",
        )
    found: dict[str, Weights] = {}
    for name in names:
        parts = tuple(tensor for other, tensor in held.items() if other.startswith(f"{name}."))
        found[name] = Dequantised(placed[name], held[name], parts, device)
    for name, tensor in held.items():
        if name in placed and name not in found and tensor.path.parent != placed[name].path.parent:
            found[name] = tensor
    return found
