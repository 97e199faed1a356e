"""What an adapter makes of the base's tensors: low-rank updates, whole replacements, and an output matrix of its own.

LoRA and its scalings: arXiv 2106.09685, 2312.03732 (rsLoRA); DoRA: 2402.09353.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from job.errors import GateError, InputError
from job.export.adapter import WEIGHTS
from job.weights.layout import Tensor, read_tensors

PREFIX = "base_model.model."
LORA_A, LORA_B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
POINTER = "/model/merge_base"


class Change(Protocol):
    """How one tensor of the merged model comes about; type and shape are those of its `base`."""

    @property
    def base(self) -> Tensor: ...

    def blocks(self, device: str) -> Iterator[Any]:
        """Its bytes in order, as buffers."""
        ...


class Weights(Protocol):
    """Where the values of a tensor come from: a file's tensor, or one that was packed in 4 bits."""

    @property
    def name(self) -> str: ...

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Any]]:
        """Its rows as torch tensors, each with the number of its first row."""
        ...


@dataclass(frozen=True)
class Copied:
    """A tensor of the base as it is."""

    base: Tensor

    def blocks(self, device: str) -> Iterator[Any]:
        return self.base.pieces()


@dataclass(frozen=True)
class Replaced:
    """A tensor that was trained whole, or held in 4 bits while others were trained, in the type of the base's."""

    base: Tensor
    trained: Weights

    def blocks(self, device: str) -> Iterator[Any]:
        for _, block in self.trained.blocks():
            yield to_buffer(block.to(self.base.torch_dtype), self.trained.name)


@dataclass(frozen=True)
class Merged:
    """W + scale·B·A, or with DoRA magnitude·(W + scale·B·A)/‖W + scale·B·A‖ over each output; computed in fp32.

    `a` is (rank, inputs), `b` (outputs, rank), `magnitude` (outputs); W, whose values `weight` has, is (outputs,
    inputs), or the other way round with `fan_in_fan_out`.
    """

    base: Tensor
    weight: Weights
    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    scale: float
    fan_in_fan_out: bool

    def blocks(self, device: str) -> Iterator[Any]:
        a, b = self.a.load().to(device).float(), self.b.load().to(device).float()
        magnitude = self.magnitude.load().to(device).float() if self.magnitude else None
        rows_at_once = self.base.shape[0] if self.fan_in_fan_out else None  # an output's norm needs all its inputs
        for first, block in self.weight.blocks(rows_at_once):
            stored = block.to(device)
            weight = (stored.T if self.fan_in_fan_out else stored).float()
            rows = slice(first, first + len(weight))
            weight.addmm_(b[rows], a, alpha=self.scale)
            if magnitude is not None:
                weight *= (magnitude[rows] / weight.norm(dim=1)).unsqueeze(1)
            yield to_buffer((weight.T if self.fan_in_fan_out else weight).to(self.base.torch_dtype), self.base.name)


def to_buffer(values: Any, name: str) -> Any:
    """The bytes of a torch tensor. Raises `GateError` if some of it is not a number."""
    import torch

    if not torch.isfinite(values).all():
        raise GateError(
            "merged values are not finite numbers",
            where=name,
            found=f"inf or NaN as {values.dtype}",
            expected="finite values",
            hint="The training has diverged, or the base's type is too narrow",
        )
    return values.contiguous().cpu().view(torch.uint8).numpy()


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter on disk; `tensors` without PEFT's prefixes; those that are whole have the base's names."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        tensors, _ = read_tensors(folder / WEIGHTS)
        return cls(config, {t.name.removeprefix(PREFIX).replace(".base_layer.", "."): t for t in tensors})

    @property
    def modules(self) -> list[str]:
        """Names of the modules with a low-rank update."""
        return [name.removesuffix(LORA_A) for name in self.tensors if name.endswith(LORA_A)]

    @property
    def whole(self) -> dict[str, Tensor]:
        """Tensors that were trained whole. Raises `InputError` for parts of adapters of other kinds."""
        rest = {name: t for name, t in self.tensors.items() if not name.endswith((LORA_A, LORA_B, MAGNITUDE))}
        strange = [name for name in rest if ".lora_" in name]
        if strange:
            raise InputError(
                "this kind of adapter cannot be merged",
                where="/lora",
                found=strange[0],
                expected="LoRA, rsLoRA or DoRA of linear layers",
            )
        return rest

    def merged(self, module: str, base: Tensor, weight: Weights) -> Merged:
        """The low-rank update of `module`, whose values are those of `weight`.

        Raises `InputError` if its matrices do not fit the base's.
        """
        a, b = self.tensors[module + LORA_A], self.tensors[module + LORA_B]
        turned = bool(self.config.get("fan_in_fan_out"))
        expected = (a.shape[1], b.shape[0]) if turned else (b.shape[0], a.shape[1])
        if base.shape != expected:
            raise InputError(
                f"the adapter does not fit {base.name}",
                where=POINTER,
                found=str(list(base.shape)),
                expected=str(list(expected)),
                hint="Name the 16-bit weights of the model that was trained",
            )
        rank = a.shape[0]
        scale = self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return Merged(base, weight, a, b, self.tensors.get(module + MAGNITUDE), scale, turned)


@dataclass(frozen=True)
class MergePlan:
    """The merged model: for each file its tensors by name, in order; `untied` if the output matrix became its own."""

    files: dict[str, dict[str, Change]]
    metadata: dict[str, dict[str, str]]
    untied: bool

    @property
    def tensors(self) -> list[tuple[str, str, Change]]:
        """(file, name, change) of every tensor."""
        return [(file, name, change) for file, changes in self.files.items() for name, change in changes.items()]


def plan_merge(
    base: Mapping[str, tuple[list[Tensor], dict[str, str]]],
    adapter: Adapter,
    tied: bool,
    values: Mapping[str, Weights] = MappingProxyType({}),
) -> MergePlan:
    """What becomes of every tensor of `base` (file name → tensors, metadata), whose embeddings are `tied` or not.

    `values`: those of the base, by name, where they are not the ones of its files. Raises `InputError` for an adapter
    that is not one of this base.
    """
    placed = {t.name: t for tensors, _ in base.values() for t in tensors}
    whole = adapter.whole
    tied = tied and any(name == HEAD or _is_embedding(name) for name in whole)
    untied = tied and _separates(whole)
    trained_head = whole.pop(HEAD, None) if tied else None

    def kept(tensor: Tensor) -> Change:
        return Replaced(tensor, values[tensor.name]) if tensor.name in values else Copied(tensor)

    changes: dict[str, Change] = {}
    for module in adapter.modules:
        tensor = _of(placed, f"{module}.weight")
        changes[tensor.name] = adapter.merged(module, tensor, values.get(tensor.name, tensor))
    changes |= {name: Replaced(_fitting(_of(placed, name), trained), trained) for name, trained in whole.items()}
    files: dict[str, dict[str, Change]] = {}
    for file, (tensors, _) in base.items():
        files[file] = {t.name: changes.get(t.name, kept(t)) for t in tensors if not (tied and t.name == HEAD)}
        shared = next((t for t in tensors if _is_embedding(t.name)), None)
        if untied and shared is not None:
            files[file][HEAD] = (
                kept(shared) if trained_head is None else Replaced(_fitting(shared, trained_head), trained_head)
            )
    return MergePlan(files, {file: metadata for file, (_, metadata) in base.items()}, untied)


def _of(placed: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in placed:
        raise InputError(
            "the base has no weight of this name",
            where=POINTER,
            found=name,
            expected="the weights of the model that was trained",
        )
    return placed[name]


def _fitting(base: Tensor, trained: Tensor) -> Tensor:
    if base.shape != trained.shape:
        raise InputError(
            f"the trained tensor does not fit {base.name}",
            where=POINTER,
            found=str(list(base.shape)),
            expected=str(list(trained.shape)),
        )
    return base


def _is_embedding(name: str) -> bool:
    return name.endswith(EMBEDDING)


def _separates(whole: Mapping[str, Tensor]) -> bool:
    """Whether input and output matrix, one before training, become two: PEFT trains a copy of each that is named."""
    head, embedding = whole.get(HEAD), next((t for name, t in whole.items() if _is_embedding(name)), None)
    return head is None or embedding is None or not head.holds(embedding.pieces())
