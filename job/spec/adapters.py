"""Adapters that a spec names beside its base: one to go on from, or several to combine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from job.errors import Fault
from job.spec.wording import show

Json = dict[str, Any]
THINNED = ("ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd", "magnitude_prune",
           "magnitude_prune_svd")  # fmt: skip
SIGNED = ("ties", "ties_svd", "dare_ties", "dare_ties_svd")
READ = ("seed", "eval_batch_size")  # of the section training, where nothing is trained
# What PEFT does not combine, and what it is without
UNLIKE = {"rslora": False, "dora": False, "bias": "none", "modules_to_save": [], "dropout": 0.0}


@dataclass(frozen=True)
class WeightedSpec:
    """One of several adapters."""

    adapter: str
    weight: float


@dataclass(frozen=True)
class CombineSpec:
    """How several become one; methods in PEFT's names."""

    method: Literal[
        "cat", "svd", "linear", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
        "magnitude_prune", "magnitude_prune_svd",
    ]  # fmt: skip
    density: float | None
    sign: Literal["total", "frequency"] | None


def goes_on(document: Json) -> Iterator[Fault]:
    """Weights that are there already are neither drawn by a seed nor trained whole."""
    model = document["model"]
    given = [key for key in ("adapter", "adapters") if key in model]
    if not given:
        return
    if model.get("precision") == "full":
        yield Fault("there is no adapter when every weight is trained", where=f"/model/{given[0]}",
                    found=show(model[given[0]]), expected=f"no {given[0]}, or precision 16bit")  # fmt: skip
    for key in ("init", "seed"):
        if key in document.get("lora", {}):
            yield Fault("the adapter has its weights already", where=f"/lora/{key}", found=show(document["lora"][key]),
                        expected=f"no {key} beside model.{given[0]}")  # fmt: skip


def combines(document: Json) -> Iterator[Fault]:
    """What combining needs, and what would be without effect."""
    model, lora = document["model"], document.get("lora", {})
    if "adapters" not in model:
        if "combine" in model:
            yield Fault("there is nothing to combine", where="/model/combine", found=show(model["combine"]),
                        expected="model.adapters beside it")  # fmt: skip
        return
    if "adapter" in model:
        yield Fault("several adapters are combined, or one is gone on from", where="/model/adapter",
                    found=show(model["adapter"]), expected="no adapter beside model.adapters")  # fmt: skip
    for key in document.get("training", {}):
        if key not in READ:
            yield Fault("nothing is trained where adapters are combined", where=f"/training/{key}",
                        found=show(document["training"][key]), expected=" and ".join(READ))  # fmt: skip
    for key, without in UNLIKE.items():
        if lora.get(key, without) != without:
            yield Fault("adapters of this kind are not combined", where=f"/lora/{key}", found=show(lora[key]),
                        expected=json.dumps(without))  # fmt: skip
    if lora.get("r", 16) != lora.get("alpha", 16):
        yield Fault("a combined adapter has its scale in its weights", where="/lora/alpha",
                    found=json.dumps(lora.get("alpha", 16)), expected=f"{lora.get('r', 16)}, as r")  # fmt: skip
    yield from _options(model.get("combine", {}))


def _options(combine: Json) -> Iterator[Fault]:
    method = combine.get("method", "cat")
    if method in THINNED and "density" not in combine:
        yield Fault("this method keeps a share of the weights", where="/model/combine/density",
                    found=f"method {method}", expected="density, such as 0.5")  # fmt: skip
    for key, methods in (("density", THINNED), ("sign", SIGNED)):
        if key in combine and method not in methods:
            yield Fault(f"this method has no {key}", where=f"/model/combine/{key}", found=f"method {method}",
                        expected=f"no {key}, or one of {', '.join(methods)}")  # fmt: skip
