"""A spec with every default filled in."""

from __future__ import annotations

from typing import Any

from job.spec.defaults import EPOCHS, form_of, form_of_tasks, job_schema
from job.spec.task_rules import as_object
from job.training.methods import METHODS

FULL_LEARNING_RATE = 2e-5  # where every weight is trained; the schema's default is an adapter's

Json = dict[str, Any]


def resolve(document: Json) -> Json:
    """The spec with every default of the schema filled in; `lora` stays away where every weight is trained, and so do
    settings of other methods.
    """
    resolved: Json = _with_defaults(document, job_schema())
    if "tasks" in resolved["evaluation"]:
        tasks = [_with_defaults(as_object(one), form_of_tasks()) for one in resolved["evaluation"]["tasks"]]
        resolved["evaluation"]["tasks"] = tasks
    training = resolved["training"]
    method = METHODS[training["method"]]
    if options := form_of("training")["properties"].get(method.name):
        training[method.name] = _with_defaults(training.get(method.name, {}), options)
    if document["model"].get("precision") == "full":
        del resolved["lora"]
        if "learning_rate" not in document.get("training", {}):
            training["learning_rate"] = FULL_LEARNING_RATE
    if method.learning_rate and "learning_rate" not in document.get("training", {}):
        training["learning_rate"] = method.learning_rate
    if "adapters" in resolved["model"]:
        combine = form_of("model")["properties"]["combine"]
        resolved["model"]["combine"] = _with_defaults(resolved["model"].get("combine", {}), combine)
    resolved.pop("$schema", None)
    if "epochs" not in training and "max_steps" not in training:
        training["epochs"] = EPOCHS
    return resolved


def _with_defaults(value: Any, schema: Json) -> Any:
    """`value` with defaults filled in and numbers in one form, so that `1` and `1.0` give the same run id."""
    if "$ref" in schema:
        schema = form_of(schema["$ref"].rsplit("/", 1)[1])
    if schema.get("type") == "number":
        return float(value) + 0.0  # -0.0 becomes 0.0
    if schema.get("type") == "integer" or ("anyOf" in schema and type(value) is float):  # a whole number among forms
        return int(value)
    if isinstance(value, list):
        return [_with_defaults(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    filled = {}
    for key, sub in schema["properties"].items():
        if key in value:
            filled[key] = _with_defaults(value[key], sub)
        elif "default" in sub:
            filled[key] = _with_defaults(sub["default"], sub)
        elif "$ref" in sub:  # a whole section left out is a section of defaults
            filled[key] = _with_defaults({}, sub)
    return filled
