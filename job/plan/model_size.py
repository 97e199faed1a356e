"""How large the base model is, as far as a machine that has not fetched it can know, and its adapter."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from job.source import FetchedModel
from job.source.model_files import CONFIG, read_object
from job.spec import JobSpec
from job.weights.shapes import NF4_BYTES, Shapes, read_shapes

ADAPTER_BYTES_PER_WEIGHT = 4  # adapters are stored as trained, at most fp32
DEFAULT_PARAMETERS = 8 * 10**9
# A name says "1B" of 1.24e9 weights and "7b" of 8.5e9.
NAME_MARGIN = 1.25
IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(?:([0-9]+)x)?([0-9]+(?:\.[0-9]+)?)([bBmM])(?![A-Za-z0-9])")
UNITS = {"b": 10**9, "m": 10**6}
PACKED_NAME = re.compile(r"4bit|awq|gptq", re.IGNORECASE)
VOCABULARY = 128_256  # Llama 3's; most are between this half and this double
HEAD_WIDTH = 128  # layers grow with the width: 32 of 4,096, 80 of 8,192
TIED_BELOW = 4 * 10**9  # smaller models share the embedding with the output layer
PACKED_WEIGHTS = 2  # of 4 bits in each stored byte
NUMBER_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MOST = {"hidden": 1 << 17, "layers": 1 << 12, "vocabulary": 1 << 21}  # more is a mistake in the file
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ModelSize:
    """`quantised`: packed in 4 bits already; `local`: linked, not copied; `origin`: how all that is known."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    quantised: bool
    local: bool
    origin: str

    @property
    def tables(self) -> int:
        """The embedding, and the output layer where it is not the same."""
        return 1 if self.parameters < TIED_BELOW else 2

    @property
    def table_rows(self) -> int:
        return min(self.vocabulary, self.parameters // (2 * self.tables * self.hidden))

    @property
    def embedding_parameters(self) -> int:
        return self.tables * self.table_rows * self.hidden

    @property
    def layer_parameters(self) -> float:
        """Of one layer."""
        return (self.parameters - self.embedding_parameters) / self.layers

    def shapes(self) -> Shapes:
        """A decoder of that size: seven linear layers in each block, one or two tables of the vocabulary."""
        per_matrix = (self.parameters - self.embedding_parameters) // (len(LINEAR) * self.layers * self.hidden)
        blocks: dict[str, tuple[str, tuple[int, ...]]] = {
            f"model.layers.{block}.{name}.weight": ("BF16", (self.hidden, per_matrix))
            for block in range(self.layers)
            for name in LINEAR
        }
        names = ("model.embed_tokens.weight", "lm_head.weight")[: self.tables]
        return Shapes(blocks | dict.fromkeys(names, ("BF16", (self.table_rows, self.hidden))))


def model_size(spec: JobSpec, parameters: int | None) -> ModelSize:
    """From what the user says, else the files if they are here, else the model's name, else an 8B model.

    Raises `InputError` for files that are not a model.
    """
    source = spec.model.source
    local = "://" not in source
    packed = spec.model.merge_base is not None or bool(PACKED_NAME.search(source))
    if local and (Path(source) / CONFIG).is_file() and (found := _from_files(Path(source), parameters)):
        return found
    if parameters:
        return of_parameters(parameters, packed, local, f"{parameters:,} weights (--parameters)")
    named = _in_name(spec.model.merge_base or source) or _in_name(source)
    if named:
        origin = f"{named:,} weights, guessed from the model's name (--parameters says it exactly)"
        return of_parameters(int(named * NAME_MARGIN), packed, local, origin)
    origin = f"{DEFAULT_PARAMETERS:,} weights, as nothing here says how many (--parameters does)"
    return of_parameters(DEFAULT_PARAMETERS, packed, local, origin)


def size_of_base(spec: JobSpec, base: FetchedModel) -> ModelSize:
    """Of the spec's base, whose weights need not be fetched yet."""
    return size_of_fetched(base.path, base.weight_bytes, local="://" not in spec.model.source)


def size_of_fetched(folder: Path, weight_bytes: int, local: bool) -> ModelSize:
    """From the config in `folder` and the size of the weights, even without these. Raises `InputError`."""
    return size_of_config(read_object(folder / CONFIG), weight_bytes, local)


def size_of_config(config: dict[str, Any], weight_bytes: int, local: bool) -> ModelSize:
    """The same of a config that has been read."""
    packed = "quantization_config" in config
    text = config.get("text_config")
    section = text if isinstance(text, dict) else config
    kind = str(section.get("dtype") or section.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype"))
    parameters = max(1, weight_bytes // NUMBER_BYTES.get(kind.removeprefix("torch."), 2))
    if packed:
        tables = _with_config(of_parameters(2 * weight_bytes, True, local, ""), config).embedding_parameters
        parameters = max(1, tables + int(max(0, weight_bytes - 2 * tables) / NF4_BYTES))
    experts = any("experts" in key for key in section)
    all_met = ", every expert counted as if each token met it: times are at most these" if experts else ""
    origin = f"{parameters:,} weights, by the size of its files{all_met}"
    return _with_config(of_parameters(parameters, packed, local, origin), config)


def _from_files(folder: Path, parameters: int | None) -> ModelSize | None:
    config = read_object(folder / CONFIG)
    packed = "quantization_config" in config
    found = parameters or read_shapes(folder).parameters * (PACKED_WEIGHTS if packed else 1)
    if not found:
        return None
    return _with_config(of_parameters(found, packed, True, f"{found:,} weights, read from its files"), config)


def _with_config(guess: ModelSize, config: dict[str, Any]) -> ModelSize:
    """What the config says, as far as it can be true; of models of several parts, of the one that reads text."""
    text = config.get("text_config")
    section = text if isinstance(text, dict) else config
    sizes = {"hidden": "hidden_size", "layers": "num_hidden_layers", "vocabulary": "vocab_size"}
    known = {
        field: section[key]
        for field, key in sizes.items()
        if type(section.get(key)) is int and 0 < section[key] <= MOST[field]
    }
    return dataclasses.replace(guess, **known)


def of_parameters(parameters: int, quantised: bool, local: bool, origin: str) -> ModelSize:
    """Width and depth of a decoder with that many weights: 12 × width² in each of width ÷ 128 layers."""
    hidden = max(HEAD_WIDTH, round((parameters * HEAD_WIDTH / 12) ** (1 / 3)))
    return ModelSize(parameters, hidden, max(1, hidden // HEAD_WIDTH), VOCABULARY, quantised, local, origin)


def _in_name(source: str) -> int | None:
    """The largest size that the last part of an address names: `8B` in `Meta-Llama-3.1-8B`, 30B in `Qwen3-30B-A3B`."""
    for part in reversed(source.split("/")):
        sizes = [
            int(float(size) * int(experts or 1) * UNITS[unit.lower()]) for experts, size, unit in IN_NAME.findall(part)
        ]
        if sizes:
            return max(sizes)
    return None


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
