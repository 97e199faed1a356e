"""The schema of the log: every event that the code can write, with the fields that it names, is in it."""

from __future__ import annotations

import ast
import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import Any

from job.evaluation.metrics import METRICS
from job.evaluation.metrics.task import NAME
from job.spec.strict import load_schema
from job.training.loop import TrainResult
from job.training.methods import METHODS
from tests.flow.running import fits_events

JOB = Path(__file__).parents[2] / "job"
NO_EVENTS = {"math", "np", "numpy", "torch"}  # whose log is a logarithm


def fields() -> dict[str, set[str]]:
    """By event, the fields that may be beside it."""
    schema = load_schema("events")
    known = {entry["const"]: set[str]() for entry in schema["properties"]["event"]["anyOf"]}
    for rule in schema["allOf"]:
        names = rule["then"]["propertyNames"]
        parts = names.get("anyOf", [names])
        known[rule["if"]["properties"]["event"]["const"]] = {name for part in parts for name in part.get("enum", ())}
    return known


def written() -> dict[str, set[str]]:
    """By event, the fields that calls in the code name."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in JOB.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        named = constants(tree)
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and _is_log(node.func) and node.args):
                continue
            if said := named.get(ast.unparse(node.args[0]), _said(node.args[0])):
                found[said] |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return found


def constants(tree: ast.Module) -> dict[str, str]:
    """Texts that a module gives names to."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names = [
                each for target in node.targets for each in (target.elts if isinstance(target, ast.Tuple) else [target])
            ]
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            found |= {
                ast.unparse(name): _said(value) for name, value in zip(names, values, strict=False) if _said(value)
            }
    return found


def _is_log(called: Any) -> bool:
    if isinstance(called, ast.Attribute):
        return called.attr in ("log", "_log") and ast.unparse(called.value) not in NO_EVENTS
    return isinstance(called, ast.Name) and called.id == "log"


def _said(argument: Any) -> str:
    return str(argument.value) if isinstance(argument, ast.Constant) else ""


def test_every_event_that_the_code_can_write_is_in_the_schema() -> None:
    known, found = fields(), written()
    assert len(found) > 30
    assert {event: names for event, names in found.items() if event not in known} == {}, (
        "describe it in schemas/events.schema.json"
    )
    assert {event: names - known[event] for event, names in found.items() if names - known[event]} == {}


def test_every_event_has_its_rule_and_every_field_its_event() -> None:
    schema, known = load_schema("events"), fields()
    assert len(schema["allOf"]) == len(known)
    assert set().union(*known.values()) == set(schema["properties"])
    for event in ("baseline", "evaluate", "delivered"):
        assert set(METRICS) <= known[event], "describe the metric in schemas/events.schema.json"


def test_figures_of_benchmarks_are_fields_of_what_is_delivered_alone() -> None:
    assert f"^{NAME.pattern}$" in load_schema("events")["patternProperties"]
    seen = {
        "time": "2026-01-02T03:04:05Z",
        "artefact": "merged",
        "arc_easy:acc": 0.5,
        "gsm8k:exact_match,strict-match": 0,
    }
    assert fits_events([{"event": "delivered", **seen}]) == []
    assert fits_events([{"event": "delivered", **seen, "acc": 0.5}]) != []
    assert fits_events([{"event": "export", **seen, "bytes": 3}]) != []


def test_every_curve_and_every_outcome_of_a_training_is_in_the_schema() -> None:
    known = fields()
    for method in METHODS.values():
        assert set(method.curves.values()) <= known["train"], (
            f"describe what {method.name} logs of a step in schemas/events.schema.json"
        )
        assert method.held_out is None or method.held_out.name in known["held_out"]
    outcome = {field.name for field in dataclasses.fields(TrainResult)} - {"history", "held_out_history"}
    assert outcome == known["trained"] - {"time", "event"}, "describe it in schemas/events.schema.json"
