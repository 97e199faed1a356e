"""Fields of JSON answers that are right."""

from __future__ import annotations

from typing import Any

from job.evaluation.metrics.json_text import read, same
from job.evaluation.metrics.record import Counts, Metric, Options

Path = tuple[str | int, ...]


def json_fields(answer: str, reference: str, _: Options) -> Counts | None:
    """Of the fields that answer or reference has, however deep, the share that is the same in both: a field too many
    counts as much as one that is missing. None where the reference is not a JSON object or list with a field.
    """
    try:
        wanted = fields(read(reference))
    except ValueError:
        return None
    try:
        found = fields(read(answer))
    except ValueError:
        found = {}
    right = sum(path in found and same(found[path], value) for path, value in wanted.items())
    return (right / len(wanted.keys() | found.keys()), 1.0) if () not in wanted else None


def fields(value: Any) -> dict[Path, Any]:
    """Every value that has no parts, by where it is; empty objects and lists are such values."""
    found: dict[Path, Any] = {}
    waiting: list[tuple[Path, Any]] = [((), value)]
    while waiting:
        path, part = waiting.pop()
        inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        if inner:
            waiting += [((*path, key), item) for key, item in inner]
        if not isinstance(part, dict | list) or not part:
            found[path] = part
    return found


JSON_FIELDS = Metric(
    "json_fields", "JSON fields, 0 to 1",
    "mean share of the fields that JSON answer or reference has, however deep, that are the same in both",
    lower_is_better=False, lowest=0.0, highest=1.0, unfit="are not JSON with fields", of_answer=json_fields,
)  # fmt: skip
