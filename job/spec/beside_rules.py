"""Rules of a spec about general rows: those that are mixed in, and those on which forgetting is measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from job.errors import Fault
from job.evaluation.metrics import metric_of
from job.spec.data_rules import beside_sources_of
from job.spec.method_rules import method_of
from job.spec.wording import show
from job.training.methods import METHODS

Json = dict[str, Any]
PLAIN = METHODS["sft"]  # they are read as it reads rows, whatever the method


def rows_beside(document: Json) -> Iterator[Fault]:
    for pointer, source in beside_sources_of(document):
        if source["format"] not in PLAIN.formats:
            yield Fault(
                "general rows have one answer each",
                where=f"{pointer}/format",
                found=show(source["format"]),
                expected=f"one of {', '.join(PLAIN.formats)}",
            )


def replay(document: Json) -> Iterator[Fault]:
    method = method_of(document)
    if "replay" not in document["data"]:
        return
    if method is not PLAIN:
        yield Fault("this method compares answers, and general rows have one each", where="/data/replay",
                    found=f"method {method.name}", expected="no replay, or method sft")  # fmt: skip
    if document["data"].get("shuffle") is False:
        yield Fault("general rows are mixed in by shuffling", where="/data/shuffle", found="false with data.replay",
                    expected="true")  # fmt: skip


def gates_on_forgetting(document: Json) -> Iterator[Fault]:
    evaluation = document.get("evaluation", {})
    for index, gate in enumerate(evaluation.get("gates", [])):
        if metric_of(gate["metric"]).of_general and "forgetting" not in evaluation:
            yield Fault("no general rows are measured", where=f"/evaluation/gates/{index}/metric",
                        found=show(gate["metric"]), expected="evaluation.forgetting")  # fmt: skip
