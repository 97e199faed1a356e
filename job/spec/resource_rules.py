"""Rules of a spec about the GPUs that train together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from job.errors import Fault
from job.spec.method_rules import method_of
from job.spec.strict import load_schema
from job.spec.wording import show

Json = dict[str, Any]
WITH_PARTS = ("adamw_torch", "adamw_torch_fused", "sgd")  # optimisers that work on parts of weights
# What the engine computes in one function of its own, if all of them have an adapter.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj", "down_proj"))


def passes_for_gpus(document: Json) -> Iterator[Fault]:
    """Each has to have something to do in every step."""
    training, keys = document.get("training", {}), load_schema("job")["definitions"]["training"]["properties"]
    batch, passes, micro_batch = (
        training.get(name, keys[name]["default"])
        for name in ("batch_size", "gradient_accumulation_steps", "micro_batch")
    )
    least = micro_batch if micro_batch != "auto" else 1 if method_of(document).loss_of_step else batch
    resources, most = document.get("resources", {}), batch * passes // least
    gpus, nodes = resources.get("gpus", 1), resources.get("nodes", 1)
    if (1 if gpus == "all" else gpus) * nodes > max(most, 1):
        found = f"{gpus} on each of {nodes} nodes" if nodes > 1 else str(gpus)
        yield Fault("more GPUs than a step has forward passes", where="/resources/gpus", found=found,
                    expected=f"at most {most}", hint="Raise training.gradient_accumulation_steps")  # fmt: skip


def spread_weights(document: Json) -> Iterator[Fault]:
    """What is spread is trained whole, by code that knows of parts."""
    if document.get("resources", {}).get("weights") != "spread":
        return
    training = document.get("training", {})
    optimizer = training.get(
        "optimizer", load_schema("job")["definitions"]["training"]["properties"]["optimizer"]["default"]
    )
    gpus, method = document["resources"].get("gpus", 1), training.get("method", "sft")
    found = {
        "/model/precision": (document["model"].get("precision", "4bit"), ("full",)),
        "/model/backend": (document["model"].get("backend", "unsloth"), ("peft",)),
        "/training/method": (method, ("sft",)),
        "/training/optimizer": (optimizer, WITH_PARTS),
        "/resources/gpus": (gpus, range(2, 9)),
        "/resources/nodes": (document["resources"].get("nodes", 1), (1,)),
    }
    for pointer, (value, fitting) in found.items():
        if value not in fitting:
            expected = " or ".join(map(show, fitting)) if isinstance(fitting, tuple) else "2 or more"
            yield Fault("weights cannot be spread over GPUs with this", where=pointer, found=show(value),
                        expected=expected, hint="Or leave out resources.weights: each GPU holds all")  # fmt: skip


def fp8(document: Json) -> Iterator[Fault]:
    """Only where the kernels can take the place of the engine's own functions: else it would be asked for in vain."""
    if document.get("training", {}).get("compute") != "fp8":
        return
    model, lora = document["model"], document.get("lora", {})
    precision, targets = model.get("precision", "4bit"), lora.get("targets", "all-linear")
    reasons = (
        ('"fp8" with backend peft', model.get("backend") == "peft", "backend unsloth"),
        (f'"fp8" with precision {precision}', precision not in ("4bit", "16bit"), "precision 4bit or 16bit"),
        (f'"fp8" with lora.dropout {lora.get("dropout")}', bool(lora.get("dropout")), "lora.dropout 0"),
        ('"fp8" with lora.dora', bool(lora.get("dora")), "no lora.dora"),
        (f'"fp8" with lora.bias {lora.get("bias")}', lora.get("bias", "none") != "none", 'lora.bias "none"'),
        (f'"fp8" with lora.targets {", ".join(targets)}', not _has_a_group(targets), _GROUPS),
    )
    for found, wrong, expected in reasons:
        if wrong:
            yield Fault("fp8 is for frozen weights beside a plain adapter, with Unsloth", where="/training/compute",
                        found=found, expected=expected, hint="Or leave it to auto")  # fmt: skip


_GROUPS = "all of " + ", or of ".join(", ".join(group) for group in TOGETHER)


def _has_a_group(targets: str | list[str]) -> bool:
    """What an expression names is known once the model is."""
    names = None if isinstance(targets, str) else {target.rsplit(".", 1)[-1] for target in targets}
    return names is None or any(names.issuperset(group) for group in TOGETHER)
