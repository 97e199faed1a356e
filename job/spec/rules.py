"""What no schema can say: rules between two places of a spec. Each ends where it reads what the schema found wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from job.errors import Fault
from job.gguf.types import TYPES
from job.spec.adapters import addresses, combines, goes_on, models_apart
from job.spec.data_rules import (
    address_faults,
    beside_sources_of,
    held_out_is_not_train,
    source_faults,
    sources_of,
)
from job.spec.evaluation_rules import (
    exact_match,
    gate_bounds,
    gates_of_the_trained,
    gates_of_what_is_delivered,
    gates_of_what_is_measured,
    gates_on_forgetting,
    judge,
    metric_options,
    needs_held_out,
    replay,
    rows_beside,
)
from job.spec.identity import placeholder_faults
from job.spec.method_rules import biases, dpo_loss, rewards, rows_of_the_method, settings_of_the_method
from job.spec.resource_rules import fp8, passes_for_gpus, spread_weights
from job.spec.sound import Unsound, sound_view
from job.spec.strict import load_schema
from job.spec.task_rules import benchmarks
from job.spec.wording import show

Json = dict[str, Any]
Found = TypeVar("Found")


def cross_faults(document: Json, broken: Collection[str] | None) -> list[Fault]:
    """Faults between two places of `document`. What is at the pointers `broken` is not sound; a rule says what it can
    without reading it, and nothing where they are too many to know.
    """
    if broken is None:
        return []
    view = sound_view(document, broken) if broken else document
    faults = [fault for rule in RULES for fault in _as_far_as_sound(rule, view)]
    for pointer, source in _as_far_as_sound(_every_source, view):
        faults += _as_far_as_sound(partial(source_faults, pointer), source)
    return faults


def _every_source(document: Json) -> Iterator[tuple[str, Json]]:
    yield from sources_of(document)
    yield from beside_sources_of(document)


def _as_far_as_sound(rule: Callable[[Json], Iterator[Found]], view: Json) -> list[Found]:
    found: list[Found] = []
    with suppress(Unsound):
        found.extend(rule(view))
    return found


# ------------------------------------------------------------------------------------------------ addresses


def _model_sources(document: Json) -> Iterator[Fault]:
    for pointer, source in addresses(document["model"]).items():
        yield from address_faults(source, pointer, "hf://")
        if source.startswith("s3://") and "@" in source.rsplit("/", 1)[-1]:
            yield Fault(
                "only Hub sources have revisions",
                where=pointer,
                found=show(source),
                expected="s3://bucket/prefix",
            )


def _output(document: Json) -> Iterator[Fault]:
    places = {"/output/uri": document["output"], "/output/checkpoints/uri": document["output"].get("checkpoints", {})}
    for pointer, part in places.items():
        if "uri" in part:
            unknown = list(placeholder_faults(part["uri"], pointer))
            # With something of the right form for each placeholder, which may name the bucket as well
            filled = re.sub(r"\{(\w+)\}", r"\1", part["uri"])
            yield from unknown or address_faults(filled, pointer, "")


# ------------------------------------------------------------------------------------- between two sections


def _full_precision(document: Json) -> Iterator[Fault]:
    if document["model"].get("precision") != "full":
        return
    if "lora" in document:
        yield Fault("there is no adapter when every weight is trained", where="/lora", found="lora with precision full",
                    expected="no lora section", hint="Remove /lora, or choose precision 16bit")  # fmt: skip
    if document["data"].get("packing"):
        yield Fault("packing is offered for adapters only", where="/data/packing", found="true with precision full",
                    expected="false", hint="Set packing to false, or choose precision 16bit")  # fmt: skip


def _whole_matrices(document: Json) -> Iterator[Fault]:
    targets = document.get("lora", {}).get("targets", [])
    for index, target in enumerate([] if isinstance(targets, str) else targets):
        if target.rsplit(".", 1)[-1] in ("embed_tokens", "lm_head"):
            yield Fault(
                "this matrix is trained whole or not at all",
                where=f"/lora/targets/{index}",
                found=show(target),
                expected="linear layers",
                hint="Move it to /lora/modules_to_save",
            )


def _peft_packing(document: Json) -> Iterator[Fault]:
    if document["model"].get("backend") == "peft" and document["data"].get("packing"):
        yield Fault("this backend cannot keep packed rows apart", where="/data/packing", found="true with backend peft",
                    expected="false", hint="Set packing to false, or use backend unsloth on a GPU")  # fmt: skip


def _peft_checkpointing(document: Json) -> Iterator[Fault]:
    checkpointing = document.get("training", {}).get("gradient_checkpointing")
    if document["model"].get("backend") == "peft" and checkpointing == "unsloth":
        yield Fault("this checkpointing belongs to the unsloth backend", where="/training/gradient_checkpointing",
                    found='"unsloth" with backend peft', expected='"auto", true or false')  # fmt: skip


def _micro_batch(document: Json) -> Iterator[Fault]:
    training, keys = document.get("training", {}), load_schema("job")["definitions"]["training"]["properties"]
    batch, passes = "batch_size", "gradient_accumulation_steps"
    rows = training.get(batch, keys[batch]["default"]) * training.get(passes, keys[passes]["default"])
    micro_batch = training.get("micro_batch", "auto")
    if micro_batch != "auto" and rows % micro_batch:
        yield Fault("a step cannot be cut into forward passes of this size", where="/training/micro_batch",
                    found=str(micro_batch), expected=f"a divisor of the {rows} sequences of a step",
                    hint="Or leave it out: auto finds the fastest one that fits")  # fmt: skip


def _training(document: Json) -> Iterator[Fault]:
    training = document.get("training", {})
    for first, second in (("epochs", "max_steps"), ("warmup_steps", "warmup_ratio")):
        if first in training and second in training:
            found = f"{first} {training[first]} and {second} {training[second]}"
            yield Fault(
                f"{first} and {second} exclude each other",
                where=f"/training/{second}",
                found=found,
                expected="one of them",
            )
    warmup = next((key for key in ("warmup_steps", "warmup_ratio") if training.get(key)), None)
    if warmup and training.get("lr_scheduler") == "constant":
        yield Fault(
            "this scheduler has no warm-up",
            where=f"/training/{warmup}",
            found=f"{training[warmup]} with lr_scheduler constant",
            expected="no warm-up",
            hint="Choose lr_scheduler constant_with_warmup",
        )
    if training.get("warmup_steps", 0) > training.get("max_steps", float("inf")):
        yield Fault(
            "the warm-up is longer than the run",
            where="/training/warmup_steps",
            found=str(training["warmup_steps"]),
            expected=f"at most max_steps, {training['max_steps']}",
        )
    if "early_stopping" in training and "eval_steps" not in training:
        yield Fault("early stopping needs the held-out loss during training", where="/training/early_stopping",
                    found="no training.eval_steps", expected="training.eval_steps")  # fmt: skip
    if training.get("keep") == "best" and "eval_steps" not in training:
        yield Fault("the best weights are chosen by the held-out loss during training", where="/training/keep",
                    found="no training.eval_steps", expected="training.eval_steps")  # fmt: skip


def _exports_without_adapter(document: Json) -> Iterator[Fault]:
    export, model = document.get("export", {}), document["model"]
    if model.get("precision") != "full":
        return
    if "lora_gguf" in export:
        yield Fault(
            "there is no adapter when every weight is trained",
            where="/export/lora_gguf",
            found=show(export["lora_gguf"]),
            expected="no lora_gguf",
        )
    if "merge_base" in model:
        yield Fault(
            "nothing is merged when every weight is trained",
            where="/model/merge_base",
            found=show(model["merge_base"]),
            expected="no merge_base",
        )


def _merge_onto(document: Json) -> Iterator[Fault]:
    precision, onto = document["model"].get("precision"), document.get("export", {}).get("merge_onto", "auto")
    if onto == "auto":
        return
    if precision == "full":
        yield Fault("nothing is merged when every weight is trained", where="/export/merge_onto", found=show(onto),
                    expected="no merge_onto")  # fmt: skip
    if precision == "16bit" and onto == "trained":
        yield Fault("trained and original weights are the same with 16 bits", where="/export/merge_onto",
                    found=show(onto), expected='"original" or "auto"')  # fmt: skip
    if precision == "8bit" and onto == "trained":
        yield Fault("adapters of 8-bit weights are merged onto the 16-bit ones", where="/export/merge_onto",
                    found=show(onto), expected='"original" or "auto"')  # fmt: skip


def _imatrix(document: Json) -> Iterator[Fault]:
    export = document.get("export", {})
    if export.get("imatrix"):
        return
    for index, name in enumerate(export.get("gguf", [])):
        if TYPES[name].needs_imatrix:
            yield Fault(
                "this type needs an importance matrix",
                where=f"/export/gguf/{index}",
                found=show(name),
                expected="export.imatrix true",
            )


def _lora_gguf(document: Json) -> Iterator[Fault]:
    lora = document.get("lora", {})
    if "lora_gguf" not in document.get("export", {}):
        return
    unfit = [(key, lora.get(key)) for key in ("dora", "modules_to_save") if lora.get(key)]
    unfit += [("bias", lora["bias"])] if lora.get("bias", "none") != "none" else []
    for key, value in unfit:
        yield Fault(
            "a GGUF adapter holds low-rank matrices only",
            where=f"/lora/{key}",
            found=json.dumps(value),
            expected="no export.lora_gguf beside it",
            hint="Leave out export.lora_gguf and use export.gguf",
        )


def _gguf_limits(document: Json) -> Iterator[Fault]:
    export = document.get("export", {})
    seen: set[str] = set()
    for index, limit in enumerate(export.get("limits", {}).get("gguf", [])):
        pointer, name = f"/export/limits/gguf/{index}/type", limit["type"]
        if name not in export.get("gguf", []):
            yield Fault(
                "a limit for a type that is not made", where=pointer, found=show(name), expected="a type of export.gguf"
            )
        if name in seen:
            yield Fault("this type has its limits already", where=pointer, found=show(name), expected="each type once")
        seen.add(name)


RULES: tuple[Callable[[Json], Iterator[Fault]], ...] = (
    _model_sources,
    goes_on,
    combines,
    _output,
    models_apart,
    _full_precision,
    _whole_matrices,
    _peft_packing,
    _peft_checkpointing,
    fp8,
    _micro_batch,
    passes_for_gpus,
    spread_weights,
    _training,
    rows_of_the_method,
    settings_of_the_method,
    dpo_loss,
    biases,
    rewards,
    gates_of_the_trained,
    needs_held_out,
    exact_match,
    metric_options,
    gates_of_what_is_measured,
    gate_bounds,
    judge,
    benchmarks,
    gates_of_what_is_delivered,
    _exports_without_adapter,
    _merge_onto,
    _imatrix,
    _lora_gguf,
    _gguf_limits,
    held_out_is_not_train,
    rows_beside,
    replay,
    gates_on_forgetting,
)
