"""Rules of a spec about what is measured: held-out rows, questions with answers, gates, general rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from job.errors import Fault
from job.evaluation.metrics import METRICS, Metric, metric_of
from job.evaluation.metrics.judge import JUDGE_WIN_RATE
from job.evaluation.metrics.task import NAME as TASK
from job.export.kinds import measured
from job.spec.data_rules import beside_sources_of, held_out_sources
from job.spec.method_rules import method_of
from job.spec.task_rules import as_object
from job.spec.wording import show
from job.training.methods import METHODS

Json = dict[str, Any]
PLAIN = METHODS["sft"]  # general rows are read as it reads rows, whatever the method
DEFAULT = ["exact_match"]  # of evaluation.metrics, as in the schema


def needs_held_out(document: Json) -> Iterator[Fault]:
    if document["data"].get("held_out") is not False:
        return
    evaluation = document.get("evaluation", {})
    if "eval_steps" in document.get("training", {}):
        yield _no_held_out(
            "there are no held-out rows to evaluate on", "/training/eval_steps", document["training"]["eval_steps"]
        )
    if evaluation.get("exact_match_rows"):
        yield _no_held_out(
            "exact match needs held-out rows", "/evaluation/exact_match_rows", evaluation["exact_match_rows"]
        )
    for index, gate in enumerate(evaluation.get("gates", [])):
        metric = metric_of(gate["metric"])
        if metric.of_losses or metric.of_margin is not None:
            yield _no_held_out("a gate needs held-out rows", f"/evaluation/gates/{index}", gate["metric"])


def _no_held_out(message: str, pointer: str, value: Any) -> Fault:
    return Fault(message, where=pointer, found=json.dumps(value), expected="data.held_out that is not false")


def exact_match(document: Json) -> Iterator[Fault]:
    evaluation = document.get("evaluation", {})
    rows = evaluation.get("exact_match_rows")
    for index, gate in enumerate(evaluation.get("gates", [])):
        if metric_of(gate["metric"]).needs_rows and not rows:
            yield Fault(
                "this gate needs exact_match_rows",
                where=f"/evaluation/gates/{index}",
                found=show(gate["metric"]),
                expected="evaluation.exact_match_rows of at least 1",
            )
    for key in ("metrics", "max_minutes"):
        if evaluation.get(key, DEFAULT) != DEFAULT and not rows:
            yield Fault(
                "nothing is asked that this would be about",
                where=f"/evaluation/{key}",
                found=show(evaluation[key]),
                expected="evaluation.exact_match_rows of at least 1",
            )
    if rows and "max_minutes" in evaluation and not _has_answers(evaluation):
        yield Fault(
            "none of the metrics has anything answered, and this bounds answers",
            where="/evaluation/max_minutes",
            found=show(evaluation["max_minutes"]),
            expected="a metric of answers among evaluation.metrics, such as exact_match",
        )
    evaluated = held_out_sources(document["data"]) or document["data"]["train"]
    if rows and any(source["format"] == "text" for source in evaluated):
        yield Fault(
            "plain text has no answer to match",
            where="/evaluation/exact_match_rows",
            found=str(rows),
            expected="0 with format text",
        )


def metric_options(document: Json) -> Iterator[Fault]:
    """Options that a metric lacks, that no metric reads, or that cannot be used."""
    evaluation = document.get("evaluation", {})
    asked = _measured(evaluation)
    for metric in METRICS.values():
        options = [option for option in (metric.option, metric.or_option) if option]
        given = [option for option in options if option in evaluation]
        if metric.needs_option and metric.name in asked and not given:
            yield Fault(
                f"the metric {metric.name} needs to know {' or '.join(options)}",
                where=f"/evaluation/metrics/{asked.index(metric.name)}",
                found=show(metric.name),
                expected=" or ".join(f"evaluation.{option}" for option in options),
            )
        for option in given:
            pointer, shown = f"/evaluation/{option}", show(evaluation[option])
            if metric.name not in asked:
                expected = f"{show(metric.name)} among evaluation.metrics"
                yield Fault("no metric reads this", where=pointer, found=shown, expected=expected)
            elif option == metric.option and (why := metric.wrong(evaluation[option])):
                yield Fault(f"the metric {metric.name} cannot use this", where=pointer, found=shown, expected=why)
        if len(given) > 1:
            yield Fault("these exclude each other", where=f"/evaluation/{given[1]}", found=" and ".join(given),
                        expected="one of them")  # fmt: skip


def gates_of_what_is_measured(document: Json) -> Iterator[Fault]:
    evaluation = document.get("evaluation", {})
    for index, gate in enumerate(evaluation.get("gates", [])):
        metric, pointer = metric_of(gate["metric"]), f"/evaluation/gates/{index}"
        if metric.needs_rows and metric.name not in _measured(evaluation):
            yield Fault(
                "a gate on what is not measured",
                where=f"{pointer}/metric",
                found=show(metric.name),
                expected=f"{show(metric.name)} among evaluation.metrics",
            )


def _measured(evaluation: Json) -> list[str]:
    """Metrics of held-out questions."""
    return list(evaluation.get("metrics", DEFAULT))


def _has_answers(evaluation: Json) -> bool:
    """Whether held-out questions are answered for a metric."""
    return bool(evaluation.get("exact_match_rows")) and any(
        metric_of(name).needs_answers for name in _measured(evaluation)
    )


def gates_of_what_is_delivered(document: Json) -> Iterator[Fault]:
    delivered = ["trained", *measured(document.get("export", {}), document["model"].get("precision") == "full")]
    for index, gate in enumerate(document.get("evaluation", {}).get("gates", [])):
        for place, name in enumerate(gate.get("of", [])):
            if name not in delivered:
                yield Fault(
                    "a gate of what is not made",
                    where=f"/evaluation/gates/{index}/of/{place}",
                    found=show(name),
                    expected=f"one of {', '.join(delivered)}",
                    hint="Ask for it in export, or take it out of the gate",
                )


def gates_of_the_trained(document: Json) -> Iterator[Fault]:
    """Some figures are of the trained model alone, and those of pairs are of a method that learns from pairs."""
    method = method_of(document)
    for index, gate in enumerate(document.get("evaluation", {}).get("gates", [])):
        metric = metric_of(gate["metric"])
        if metric.of_margin is not None and method.rewards is None:
            yield Fault("this figure is measured on pairs of answers", where=f"/evaluation/gates/{index}/metric",
                        found=f"{show(gate['metric'])} with method {method.name}",
                        expected="a method that learns from pairs, such as dpo")  # fmt: skip
        measured_of = {"trained", *(["merged"] if _merged_too(document, gate["metric"]) else [])}
        for place, name in enumerate(gate.get("of", []) if metric.trained_alone else ()):
            if name not in measured_of:
                yield Fault("this figure is measured of the trained model alone",
                            where=f"/evaluation/gates/{index}/of/{place}", found=show(name),
                            expected='"trained"; held_out_loss is measured of all that is delivered')  # fmt: skip


def _merged_too(document: Json, metric: str) -> bool:
    """Whether it may be a figure of a benchmark that the merged weights go through."""
    tasks = document.get("evaluation", {}).get("tasks", [])
    return bool(TASK.fullmatch(metric)) and any(as_object(task).get("merged") for task in tasks)


def judge(document: Json) -> Iterator[Fault]:
    """A judge needs two answers, and what is about it a judge."""
    evaluation = document.get("evaluation", {})
    for index, gate in enumerate(evaluation.get("gates", [])):
        if gate["metric"] == JUDGE_WIN_RATE.name and "judge" not in evaluation:
            yield Fault("a gate on what is not measured", where=f"/evaluation/gates/{index}/metric",
                        found=show(gate["metric"]), expected="evaluation.judge")  # fmt: skip
    if "judge" in evaluation and not evaluation.get("prompts") and not _has_answers(evaluation):
        expected = "evaluation.prompts, or exact_match_rows with a metric that has them answered"
        yield Fault("there is no answer to judge", where="/evaluation/judge", expected=expected)


def gate_bounds(document: Json) -> Iterator[Fault]:
    for index, gate in enumerate(document.get("evaluation", {}).get("gates", [])):
        pointer = f"/evaluation/gates/{index}"
        if not gate.keys() - {"metric", "of"}:
            expected = "at_least, at_most, gain_at_least or rise_at_most"
            yield Fault(
                "this gate has no bound", where=pointer, found=f"metric {show(gate['metric'])} alone", expected=expected
            )
        if "rise_at_most" in gate and not metric_of(gate["metric"]).lower_is_better:
            yield Fault(
                "a rise of this figure is an improvement",
                where=f"{pointer}/rise_at_most",
                found=show(gate["metric"]),
                expected="gain_at_least, or a metric of which less is better",
            )
        if gate.get("at_least", float("-inf")) > gate.get("at_most", float("inf")):
            yield Fault(
                "no figure is within these bounds",
                where=pointer,
                found=f"at_least {gate['at_least']}, at_most {gate['at_most']}",
                expected="at_least below at_most",
            )
        yield from _out_of_reach(gate, metric_of(gate["metric"]), pointer)


def _out_of_reach(gate: Json, metric: Metric, pointer: str) -> Iterator[Fault]:
    """Bounds that no model can hold."""
    for bound, limit in (("at_least", metric.highest), ("gain_at_least", metric.highest - metric.lowest)):
        if gate.get(bound, limit) > limit:
            yield _unreachable(gate, bound, metric, pointer, f"at most {limit:g}")
    limit = metric.lowest
    if gate.get("at_most", math.inf) < limit or (metric.lower_is_better and gate.get("at_most") == limit):
        expected = f"more than {limit:g}" if metric.lower_is_better else f"at least {limit:g}"
        yield _unreachable(gate, "at_most", metric, pointer, expected)


def _unreachable(gate: Json, bound: str, metric: Metric, pointer: str, expected: str) -> Fault:
    return Fault(
        f"no model can pass this gate on {metric.name}",
        where=f"{pointer}/{bound}",
        found=json.dumps(gate[bound]),
        expected=expected,
    )


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
