"""Which files of a model are taken, and what makes a model unfit: no code, no pickles, nothing unlisted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from job.errors import InputError, PolicyError
from job.store import safe_key

ALLOWED = (".safetensors", ".json", ".model", ".txt", ".jinja")
# Formats that run code when loaded, or whose readers have holes.
REFUSED_WEIGHTS = (
    ".bin",
    ".pt",
    ".pth",
    ".pt2",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".ggml",
    ".onnx",
    ".tar",
)
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")  # a tensor's place in the stack
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SAFETENSORS_HINT = "Convert the weights to safetensors first, or name a repository that has them"


def config_files(names: Iterable[str]) -> list[str]:
    """The files beside the weights: top level only, allowed kinds only. Raises for a tree that is not a whole model.

    `InputError` without `config.json` or weights, `PolicyError` for an adapter or for weights in no other form than
    one that can run code.
    """
    top = sorted(name for name in names if "/" not in name)
    if "adapter_config.json" in top:
        raise PolicyError(
            "this is an adapter, not a model",
            found="adapter_config.json",
            hint="Name its base here, and the adapter in model.adapter",
        )
    pickled = [name for name in top if name.endswith(REFUSED_WEIGHTS)]
    if CONFIG not in top and not pickled:
        raise InputError("this is not a model", found=_some(top), expected=f"a {CONFIG} at the top level")
    if WEIGHTS not in top and INDEX not in top:
        refuse_weights(top)
    if CONFIG not in top:
        raise InputError("this is not a model", found=_some(top), expected=f"a {CONFIG} at the top level")
    taken = [name for name in top if name.endswith(ALLOWED) and not name.endswith(".safetensors")]
    # Readers prefer the single file; an index beside it would speak of files that are not taken.
    return [name for name in taken if not name.endswith(".index.json") or (name == INDEX and WEIGHTS not in top)]


def refuse_weights(top: Sequence[str]) -> None:
    pickled = [name for name in top if name.endswith(REFUSED_WEIGHTS)]
    if pickled:
        raise PolicyError("the weights are not in a form the job loads", found=_some(pickled), expected=WEIGHTS,
                          hint=SAFETENSORS_HINT)  # fmt: skip
    raise InputError("there are no weights", found=_some(top), expected=f"{WEIGHTS}, or {INDEX} and its shards")


def weight_files(folder: Path, names: Iterable[str]) -> list[str]:
    """The safetensors that make up the model: the single file, or the shards its staged index names."""
    top = {name for name in names if "/" not in name}
    if WEIGHTS in top:
        return [WEIGHTS]
    shards = sorted(set(_weight_map(folder).values()))
    for shard in shards:
        if "/" in safe_key(shard) or not shard.endswith(".safetensors"):
            raise PolicyError(
                f"{INDEX} names a file that is not taken", found=ascii(shard), expected="*.safetensors beside it"
            )
    missing = [shard for shard in shards if shard not in top]
    if missing or not shards:
        raise InputError(
            f"{INDEX} names files that are not there", found=_some(missing), expected="every shard beside it"
        )
    return shards


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name → file name, as the index says."""
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{INDEX} is damaged", expected="a weight_map of tensor names to file names")
    return weight_map


def check_architecture(folder: Path) -> None:
    """Raises `PolicyError` unless transformers has this architecture itself: remote code is not offered."""
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES  # a plain table; imports no torch

    name = model_type(folder)
    if name not in CONFIG_MAPPING_NAMES:
        remote = " and asks for its own code" if "auto_map" in read_object(folder / CONFIG) else ""
        raise PolicyError(f"transformers does not know this architecture{remote}", found=ascii(name),
                          expected="an architecture that needs no remote code")  # fmt: skip


def model_type(folder: Path) -> str:
    """The architecture that config.json names. Raises `InputError` where it names none."""
    name = read_object(folder / CONFIG).get("model_type")
    if not isinstance(name, str):
        raise InputError(f"{CONFIG} names no model_type", found=ascii(name), expected="an architecture's name")
    return name


def check_weights(folder: Path, weights: Sequence[str]) -> None:
    """Raises `InputError` for a file that is cut or no safetensors, or a tensor of the index that is nowhere.

    A tensor that is missing would otherwise be made up at random by the loader, with a warning at most.
    """
    from safetensors import SafetensorError, safe_open

    held: dict[str, str] = {}
    for name in weights:
        try:
            with safe_open(folder / name, framework="np") as tensors:
                held.update(dict.fromkeys(tensors.keys(), name))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{name} is not whole or not a safetensors file: {error}") from error
    if list(weights) != [WEIGHTS]:
        lost = sorted(tensor for tensor, name in _weight_map(folder).items() if held.get(tensor) != name)
        if lost:
            raise InputError(
                f"tensors of {INDEX} are not where it says", found=_some(lost), expected="each in its shard"
            )
    _check_layers(folder, held)


def _check_layers(folder: Path, tensors: Iterable[str]) -> None:
    """Raises `InputError` if config.json promises more layers than there are weights for."""
    promised = read_object(folder / CONFIG).get("num_hidden_layers")
    numbers = {int(match[1]) for name in tensors if (match := LAYER.search(name))}
    if isinstance(promised, int) and numbers and max(numbers) + 1 < promised:
        found = f"weights of {max(numbers) + 1} layers"
        raise InputError("the weights are not those of this config.json", found=found, expected=f"{promised} layers")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name} is damaged", found=type(value).__name__, expected="a JSON object")
    return value


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(ascii, names[:5])) or "nothing"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
