"""Rules of a spec about the method of training: its rows, its settings, and what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from job.errors import Fault
from job.spec.data_rules import sources_of
from job.spec.wording import show
from job.training.methods import METHODS, Method

Json = dict[str, Any]
SMOOTHED = ("robust", "exo_pair")  # losses of dpo


def method_of(document: Json) -> Method:
    return METHODS[document.get("training", {}).get("method", "sft")]


def rows_of_the_method(document: Json) -> Iterator[Fault]:
    method = method_of(document)
    for pointer, source in sources_of(document):
        kind = source["format"]
        if kind not in method.formats:
            others = " or ".join(show(other.name) for other in METHODS.values() if kind in other.formats)
            yield Fault(
                f"method {method.name} learns from other rows",
                where=f"{pointer}/format",
                found=show(kind),
                expected=f"one of {', '.join(method.formats)}",
                hint=f"Write these rows' method in training.method: {others}",
            )


def settings_of_the_method(document: Json) -> Iterator[Fault]:
    """Those of other methods are refused, and so is what the method cannot do."""
    method, training = method_of(document), document.get("training", {})
    for name in METHODS:
        if name in training and name != method.name:
            yield Fault(
                f"these are settings of method {name}",
                where=f"/training/{name}",
                found=f"method {show(method.name)}",
                expected=f"no {name}, or method {show(name)}",
            )
    if not method.packs and document["data"].get("packing"):
        yield Fault("rows of this method cannot be packed: answers are compared whole",
                    where="/data/packing", found=f"true with method {method.name}", expected="false")  # fmt: skip
    if not method.packs and document["data"].get("train_on") == "all":
        yield Fault("this method compares answers; prompts are not learned", where="/data/train_on",
                    found=f'"all" with method {method.name}', expected='"responses"')  # fmt: skip
    for key in ("batch_size", "micro_batch"):
        rows = training.get(key, "auto")
        if rows != "auto" and rows < method.least_rows:
            yield Fault(
                "this method compares the rows of a micro-batch with each other",
                where=f"/training/{key}",
                found=f"{rows} with method {method.name}",
                expected=f"at least {method.least_rows}",
            )
    if method.needs_adapter and document["model"].get("precision") == "full":
        yield Fault("this method compares with the base, of which there would have to be a second copy",
                    where="/model/precision", found=f'"full" with method {method.name}',
                    expected='"4bit", "8bit" or "16bit": the base is the model with the adapter off')  # fmt: skip


def dpo_loss(document: Json) -> Iterator[Fault]:
    options = document.get("training", {}).get("dpo", {})
    loss, smoothing = options.get("loss_type", "sigmoid"), options.get("label_smoothing", 0)
    if smoothing and loss not in SMOOTHED:
        yield Fault("this loss has no label smoothing", where="/training/dpo/label_smoothing",
                    found=f"{json.dumps(smoothing)} with loss_type {loss}", expected="0",
                    hint="Choose loss_type robust for pairs of which some are the wrong way round")  # fmt: skip
    if loss == "exo_pair" and not smoothing:
        yield Fault("this loss needs label smoothing", where="/training/dpo/label_smoothing",
                    found=json.dumps(smoothing), expected="more than 0, such as 0.001")  # fmt: skip
