"""Answers that are JSON, by a schema if the spec gives one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from job.evaluation.metrics.json_text import read
from job.evaluation.metrics.record import Counts, Metric, Options, yes

LONGEST = 16_384  # characters of a schema: some keywords take time by the square of their length
REFERENCES = ("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor")


def json_valid(answer: str, _: str, options: Options) -> Counts:
    """Whether the whole answer is one JSON value, and valid."""
    try:
        value = read(answer)
    except ValueError:
        return yes(False)
    if options.json_schema is None:
        return yes(True)
    try:
        return yes(bool(_validator(json.dumps(options.json_schema)).is_valid(value)))
    except RecursionError:  # of a deep answer, or of a schema that is its own part: nothing is valid by that
        return yes(False)


@lru_cache(maxsize=4)
def _validator(text: str) -> Any:
    from jsonschema.validators import Draft202012Validator, validator_for

    schema = read(text)
    return validator_for(schema, default=Draft202012Validator)(schema)


def wrong(schema: Mapping[str, Any]) -> str:
    """What is not a schema, is too large, or looks elsewhere than within itself."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    if len(json.dumps(schema)) > LONGEST:
        return f"a schema of at most {LONGEST} characters"
    named = schema.get("$schema", Draft202012Validator.META_SCHEMA["$schema"])
    kind: Any = validator_for({"$schema": str(named)}, default=Draft202012Validator)
    if kind.META_SCHEMA["$schema"].rstrip("#") != str(named).rstrip("#"):
        return f"a dialect that is known, not {named!r:.80}"
    try:
        kind.check_schema(schema, format_checker=kind.FORMAT_CHECKER)
    except SchemaError as error:
        return f"not a JSON Schema: /{'/'.join(map(str, error.absolute_path))}: {error.message:.160}"
    except (OverflowError, RecursionError) as error:
        return f"not a JSON Schema: a pattern of it cannot be used: {error}"
    return next(_lost_references(schema, schema), "")


def _lost_references(part: Any, whole: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(part, list):
        for item in part:
            yield from _lost_references(item, whole)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key in REFERENCES and isinstance(value, str | bool):
            yield f"{key} is not supported; $ref to a place of the same schema is"
        if key == "$ref" and isinstance(value, str) and not _is_place(value, whole):
            yield f"$ref is to no place of the same schema: {value!r:.80}"
        yield from _lost_references(value, whole)


def _is_place(reference: str, whole: Mapping[str, Any]) -> bool:
    place: Any = whole
    if not reference.startswith("#"):
        return False
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, dict) and name in place:
            place = place[name]
        else:
            return False
    return reference == "#" or reference.startswith("#/")


JSON_VALID = Metric(
    "json_valid", "Valid JSON, 0 to 1", "share of answers that are JSON, and valid by `json_schema` if that is given",
    lower_is_better=False, lowest=0.0, highest=1.0, of_answer=json_valid, option="json_schema", wrong=wrong,
)  # fmt: skip
