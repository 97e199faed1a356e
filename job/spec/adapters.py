"""Adapters that a spec names beside its base: one to go on from, or several to combine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from job.errors import Fault
from job.spec.defaults import asked_for, form_of
from job.spec.wording import show

Json = dict[str, Any]
THINNED = ("ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd", "magnitude_prune",
           "magnitude_prune_svd")  # fmt: skip
EXACT = ("cat", "svd")  # sums of what the adapters do
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
        if asked_for(document.get("lora", {}), key, form_of("lora")):
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
        if key not in READ and asked_for(document["training"], key, form_of("training")):
            yield Fault("nothing is trained where adapters are combined", where=f"/training/{key}",
                        found=show(document["training"][key]), expected=" and ".join(READ))  # fmt: skip
    for key, without in UNLIKE.items():
        if lora.get(key, without) != without:
            yield Fault("adapters of this kind are not combined", where=f"/lora/{key}", found=show(lora[key]),
                        expected=json.dumps(without))  # fmt: skip
    if not any(each.get("weight", 1.0) for each in model["adapters"]):
        yield Fault("nothing is left of adapters that are all multiplied by 0", where="/model/adapters",
                    expected="another weight than 0")  # fmt: skip
    elif model.get("combine", {}).get("method", "cat") in EXACT and not any(_weights(model["adapters"]).values()):
        yield Fault("nothing is left of adapters that are taken away again", where="/model/adapters",
                    found="weights that add up to 0 for each adapter", expected="another weight of one")  # fmt: skip
    for key in ("gpus", "nodes"):
        if (count := document.get("resources", {}).get(key, 1)) not in (1, "all"):
            yield Fault("nothing is trained where adapters are combined", where=f"/resources/{key}", found=show(count),
                        expected="1")  # fmt: skip
    if lora.get("r", 16) != lora.get("alpha", 16):
        yield Fault("a combined adapter has its scale in its weights", where="/lora/alpha",
                    found=json.dumps(lora.get("alpha", 16)), expected=f"{lora.get('r', 16)}, as r")  # fmt: skip
    yield from _options(model.get("combine", {}))


def _weights(adapters: list[Json]) -> dict[str, float]:
    """By address, what it is multiplied by in all."""
    found: dict[str, float] = {}
    for each in adapters:
        found[each["adapter"]] = found.get(each["adapter"], 0.0) + each.get("weight", 1.0)
    return found


def _options(combine: Json) -> Iterator[Fault]:
    method = combine.get("method", "cat")
    if method in THINNED and "density" not in combine:
        yield Fault("this method keeps a share of the weights", where="/model/combine/density",
                    found=f"method {method}", expected="density, such as 0.5")  # fmt: skip
    for key, methods in (("density", THINNED), ("sign", SIGNED)):
        if key in combine and method not in methods:
            yield Fault(f"this method has no {key}", where=f"/model/combine/{key}", found=f"method {method}",
                        expected=f"no {key}, or one of {', '.join(methods)}")  # fmt: skip


def addresses(model: Json) -> dict[str, str]:
    """Pointer and address of every model and adapter."""
    given = {f"/model/adapters/{i}/adapter": one["adapter"] for i, one in enumerate(model.get("adapters", []))}
    return {f"/model/{key}": model[key] for key in ("source", "merge_base", "adapter") if key in model} | given


def models_apart(document: Json) -> Iterator[Fault]:
    """A run that goes on from what is at its own output would be refused there, or replace what it needs."""
    output = os.path.normpath(document["output"]["uri"].replace("{name}", document["name"]))
    own = {output, *(f"{output}/{part}" for part in ("adapter", "merged", "merged_4bit"))}
    for pointer, address in addresses(document["model"]).items():
        if "hf://" not in address and os.path.normpath(address) in own:
            yield Fault("a run's output is a place of its own", where=pointer, found=show(address),
                        expected=f"another place than output.uri, {show(document['output']['uri'])}")  # fmt: skip
