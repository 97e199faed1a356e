"""Where the kernels go: layers on which the engine has put its own fused functions, and that have plain adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from subprocess import SubprocessError
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from job.training.kernels.adapters import Adapters, LowRank, watch_steps
from job.training.kernels.check import LIMIT, LIMIT_FP8, gated_differs, projections_differ
from job.training.kernels.frozen import Dense, Dequantise, Frozen, InFp8, Packed
from job.training.kernels.gated import Gated, Layer
from job.training.kernels.placed import Placed
from job.training.kernels.projections import Projections

if TYPE_CHECKING:
    from torch import Tensor

# What the engine calls its own functions: for adapters without bias and magnitudes, and for all others, such as those
# on queries with a bias (Qwen2), where it calls one projection after the other.
THEIR_QKV, THEIR_OUTPUT = ("apply_lora_qkv", "original_apply_qkv"), ("apply_lora_o", "original_apply_o")
THEIR_GATED = "apply_lora_mlp_swiglu"
# Where a batch is padded the engine compiles its layers, by a forward of their class that is marked so, unless a layer
# has this mode.
COMPILED, MODE, NOT_COMPILED = "_unsloth_block_compiled", "_unsloth_block_mode", 0
MULTIPLE = 16  # of both sides of a matrix in 8 bits


def place(model: Any, dequantise: Dequantise, fp8: bool) -> Placed:
    """Has every layer that can be computed with these kernels computed with them, while it trains; none if the first of
    a kind does not compute what it should, or cannot be tried.
    """
    watch_steps()
    placed, limit, name = Placed("fp8" if fp8 else "fast"), LIMIT_FP8 if fp8 else LIMIT, "a layer"
    try:
        for module, name, projections in found(model):
            made = GatedLayer if name == "forward" else ProjectedLayer
            kernels = made(module.__dict__[name], projections, dequantise, fp8)
            if name not in placed.differences:
                placed.differences[name] = difference = round(kernels.difference(), 5)
                if not difference <= limit:
                    placed.reason = f"{name} differs by {difference} from what it should compute, limit {limit}"
                    break
            placed.put(module, name, kernels.put_on(module))
        for layer in compiled_layers(model) if placed else ():
            placed.set_aside(layer, MODE, NOT_COMPILED)
    except errors() as error:  # also of a compiler that does not know this card
        placed.reason = f"{name} cannot be tried: {type(error).__name__}: {error}"
    if placed.reason:
        placed.take_away()
    elif not placed:
        placed.reason = "no layer has a form that they know"
    return placed


def compiled_layers(model: Any) -> Iterator[Any]:
    """Layers that the engine compiles, all by one graph. With kernels each of them would need a graph of its own, as
    they hold its weights: seconds a layer, in the first step and again for other lengths.
    """
    for module in model.modules():
        if getattr(type(module).forward, COMPILED, False):
            yield module


def errors() -> tuple[type[Exception], ...]:
    """What kernels fail with: torch's errors, memory among them, and the compilers'."""
    if not torch.cuda.is_available():
        return (RuntimeError,)
    from triton.errors import TritonError

    return (RuntimeError, SubprocessError, TritonError)


def found(model: Any) -> Iterator[tuple[Any, str, list[Any]]]:
    """(module, the attribute that computes it, its projections)"""
    for module in model.modules():
        own = module.__dict__
        if getattr(own.get("apply_qkv"), "__name__", "") in THEIR_QKV:
            yield from _usable(module, "apply_qkv", [["q_proj", "k_proj", "v_proj"]])
        if getattr(own.get("apply_o"), "__name__", "") in THEIR_OUTPUT:
            yield from _usable(module, "apply_o", [["o_proj"]])
        if getattr(getattr(own.get("forward"), "__func__", None), "__name__", "") == THEIR_GATED:
            yield from _usable(module, "forward", [["gate_proj", "up_proj"], ["down_proj"]])


def _usable(module: Any, name: str, names: list[list[str]]) -> Iterator[tuple[Any, str, list[Any]]]:
    """`names`: of projections, those together whose weights are put one below the other."""
    together = [[getattr(module, each) for each in group] for group in names]
    projections = [each for group in together for each in group]
    if (
        all(map(_plain, projections))
        and len({rank for each in projections for rank in each.r.values()}) == 1
        and len({_stored_in(each)[0] for each in projections}) == 1
        and all(len(set(map(_stored_in, group))) == 1 for group in together)
    ):
        yield module, name, projections


def _stored_in(projection: Any) -> tuple[Any, bool]:
    """In what it is computed with, and whether it is in NF4: some models have single matrices in 16 bits beside it."""
    weight = projection.base_layer.weight
    state = getattr(weight, "quant_state", None)
    return (weight if state is None else state).dtype, state is not None


def _plain(projection: Any) -> bool:
    """One adapter without dropout and magnitudes on what is frozen, its weights in NF4 or in 16 bits."""
    if not hasattr(projection, "lora_A"):
        return False
    weight, bias = projection.base_layer.weight, projection.base_layer.bias
    state = getattr(weight, "quant_state", None)
    known = state.quant_type == "nf4" if state is not None else weight.dtype in (torch.bfloat16, torch.float16)
    names = list(projection.lora_A)
    return (
        known
        and len(names) == 1
        and not any(each.requires_grad for each in (weight, bias) if each is not None)
        and not projection.lora_magnitude_vector
        and isinstance(projection.lora_dropout[names[0]], torch.nn.Identity)
        and projection.lora_B[names[0]].bias is None
    )


class Kernels:
    """What the layers of both kinds share. `theirs`: the engine's own function, for whatever is not training."""

    def __init__(self, theirs: Any, projections: list[Any], dequantise: Dequantise, fp8: bool) -> None:
        self.theirs, self.projections = theirs, projections
        self._dequantise, self._fp8 = dequantise, fp8
        weight = projections[0].base_layer.weight
        self.dtype = getattr(weight, "quant_state", weight).dtype

    def in_training(self, module: Any, x: Tensor) -> bool:
        """Not in an evaluation, whose figures belong to what is delivered; nor without the adapter, as a reference."""
        return (
            module.training
            and x.dtype == self.dtype
            and not any(projection.disable_adapters or projection.merged for projection in self.projections)
        )

    def stored(self, projections: list[Any]) -> Packed | Dense:
        """Their weights as the model has them, one below the other."""
        weights = [projection.base_layer.weight for projection in projections]
        states = [getattr(weight, "quant_state", None) for weight in weights]
        bias = self._bias(projections)
        if states[0] is None:
            return Dense(weights, bias)
        return Packed(list(zip(weights, states, strict=True)), self._dequantise, self.dtype, bias)

    def _bias(self, projections: list[Any]) -> Tensor | None:
        """Copied: it is small. Zeros for a projection that has none beside one that has."""
        layers = [projection.base_layer for projection in projections]
        if all(layer.bias is None for layer in layers):
            return None
        device = layers[0].weight.device
        parts = [
            torch.zeros(layer.out_features, device=device) if layer.bias is None else layer.bias for layer in layers
        ]
        return torch.cat([part.detach().to(self.dtype) for part in parts])

    def frozen(self, stored: Packed | Dense) -> Frozen:
        """As they are multiplied with."""
        weights = stored.weights() if self._fp8 else None
        if weights is None or any(side % MULTIPLE for side in weights.shape):
            return stored
        return InFp8(weights, stored.bias)

    def adapters(self, projections: list[Any]) -> Adapters:
        parts = []
        for projection in projections:
            name = next(iter(projection.lora_A))
            a, b = projection.lora_A[name].weight, projection.lora_B[name].weight
            parts.append(LowRank(a, b, projection.scaling[name]))
        return Adapters(parts, self.dtype)


class ProjectedLayer(Kernels):
    """Query, key and value of an attention, or its output."""

    def __init__(self, theirs: Any, projections: list[Any], dequantise: Dequantise, fp8: bool) -> None:
        super().__init__(theirs, projections, dequantise, fp8)
        self._stored = self.stored(projections)
        self._frozen, self._adapters = self.frozen(self._stored), self.adapters(projections)

    def difference(self) -> float:
        return projections_differ(self._frozen, self._stored.weights(), self._adapters)

    def put_on(self, _: Any) -> Callable[..., Any]:
        return self._apply

    def _apply(self, module: Any, x: Tensor, *rest: Any) -> Any:
        if not self.in_training(module, x):
            return self.theirs(module, x, *rest)
        y = Projections.apply(x, self._frozen, self._adapters.fresh(), *self._adapters.weights)
        return y if len(y) > 1 else y[0]


class GatedLayer(Kernels):
    """Gate, up and down of a feed-forward layer."""

    def __init__(self, theirs: Any, projections: list[Any], dequantise: Dequantise, fp8: bool) -> None:
        super().__init__(theirs, projections, dequantise, fp8)
        wide, down = projections[:2], projections[2:]
        self._stored = self.stored(wide), self.stored(down)
        frozen = [self.frozen(each) for each in self._stored]
        self._layer = Layer(frozen[0], self.adapters(wide), frozen[1], self.adapters(down))

    def difference(self) -> float:
        return gated_differs(self._layer, *(each.weights() for each in self._stored))

    def put_on(self, module: Any) -> Any:
        return MethodType(self._forward, module)

    def _forward(self, mlp: Any, x: Tensor) -> Any:
        if not self.in_training(mlp, x):
            return self.theirs(x)
        return Gated.apply(x, self._layer.fresh(), *self._layer.weights)
