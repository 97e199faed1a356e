"""A schema's complaint in words for a person who never saw JSON Schema: where, what was found, what was expected."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from jsonschema.exceptions import ValidationError

from job.errors import Fault
from job.host.credentials import MASK, looks_secret, mask, names_secret
from job.spec.elsewhere import hint_of, near_places, places_of

SHOWN_CHARACTERS = 120
SHOWN_KEYS = 8
MASKED_CHARACTERS = 4096  # enough to show the first ones, and to search in no time
NEAR_CHARACTERS = 64
MAX_FAULTS = 100

RULES = {
    "type": "wrong type",
    "enum": "not one of the allowed values",
    "const": "not the allowed value",
    "pattern": "wrong form",
    "minimum": "too small",
    "exclusiveMinimum": "too small",
    "maximum": "too large",
    "exclusiveMaximum": "too large",
    "minLength": "too short",
    "maxLength": "too long",
    "minItems": "too few entries",
    "maxItems": "too many entries",
    "uniqueItems": "an entry is given twice",
    "minProperties": "exactly one of the keys is needed",
    "maxProperties": "exactly one of the keys is needed",
    "anyOf": "none of the allowed forms",
}
TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text in double quotes",
    "boolean": "true or false",
    "array": "a list [ … ]",
    "object": "an object { … }",
}
LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "{} or more characters",
    "maxLength": "at most {} characters",
    "minItems": "{} or more entries",
    "maxItems": "at most {} entries",
}


def secret_fault(pointer: str) -> Fault:
    message = "this looks like a secret; a spec never holds one"
    return Fault(
        message,
        where=pointer,
        found=MASK,
        expected="credentials in the environment",
        hint="Remove it, and revoke it if it is real",
    )


def printable(text: str) -> str:
    """`text` without what would upset a terminal or an encoder: control and format characters, lone surrogates."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def pointer_of(parts: Iterable[str | int]) -> str:
    """A JSON pointer (RFC 6901) that is safe to print: secrets masked, odd characters escaped, long keys cut."""
    return "".join(f"/{_words(str(part)).replace('~', '~0').replace('/', '~1')}" for part in parts)


def show(value: Any) -> str:
    """A value for a message: JSON, short, secrets masked; of a list or an object only its size and its keys."""
    if isinstance(value, str):
        return f'"{_words(value, quoted=True)}"'
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "[]"
    if isinstance(value, dict):
        return f"an object with {', '.join(_words(key) for key in islice(value, SHOWN_KEYS))}" if value else "{}"
    return _words(json.dumps(value))


def _words(text: str, quoted: bool = False) -> str:
    seen = mask(text[:MASKED_CHARACTERS])
    seen = printable(json.dumps(seen, ensure_ascii=False)[1:-1] if quoted else seen)
    long = len(seen) > SHOWN_CHARACTERS or len(text) > MASKED_CHARACTERS
    return f"{seen[:SHOWN_CHARACTERS]}… ({len(text)} characters)" if long else seen


def in_words(error: ValidationError, root: dict[str, Any]) -> Iterator[Fault]:
    """The faults that one error means of a validator of the schema `root`."""
    parts: list[str | int] = list(error.absolute_path)
    rule = str(error.validator)
    limit: Any = error.validator_value
    value: Any = error.instance
    schema: dict[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    if rule == "additionalProperties":
        yield from _unknown_keys(parts, value, schema, root)
    elif rule == "required":
        for key in limit:
            if key not in value:
                yield Fault(
                    "a required key is missing", where=pointer_of([*parts, key]), expected=_described(key, schema, root)
                )
    elif rule == "anyOf" and (inner := _inside(error)):
        for deeper in inner:
            yield from in_words(deeper, root)
    else:
        found = show(_repeated(value)) if rule == "uniqueItems" else show(value)
        yield Fault(
            RULES[rule],
            where=pointer_of(parts),
            found=found,
            expected=_expected(rule, limit, schema),
            hint=_hint(rule, limit, value, schema),
        )


def _unknown_keys(
    parts: list[str | int], value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]
) -> Iterator[Fault]:
    known = list(schema["properties"])
    for key in [key for key in value if key not in schema["properties"]][:MAX_FAULTS]:
        pointer = pointer_of([*parts, key])
        if names_secret(key) or looks_secret(key):
            yield secret_fault(pointer)
        else:
            hint = _turned(parts, key, value[key], known) or _place(key, str(parts[0]) if parts else "", known, root)
            expected = f"a key of {pointer_of(parts) or 'the spec'}" if hint else f"one of {', '.join(known)}"
            yield Fault("unknown key", where=pointer, found=show(value[key]), expected=expected, hint=hint)


def _turned(parts: list[str | int], key: str, value: Any, known: list[str]) -> str:
    """What to write for a column that stands before our name for it."""
    turned = bool(parts) and parts[-1] == "columns" and isinstance(value, str) and value in known
    return f"Our name comes first, then your column's: {json.dumps({value: key})}" if turned else ""


def _place(key: str, section: str, known: list[str], root: dict[str, Any]) -> str:
    """Where an unknown key belongs: where its name is known, else by the nearest spelling, here before elsewhere."""
    if known_there := hint_of(key, root, section):
        return known_there
    if len(key) > NEAR_CHARACTERS:
        return ""
    return _nearest(key, known) or (f"Did you mean {' or '.join(near)}?" if (near := near_places(key, root)) else "")


def meant_places(error: ValidationError, root: dict[str, Any]) -> Iterator[str]:
    """Pointers of what the unknown keys that an error is about may have been meant for, as their hints say; what is
    there beside them was not meant.
    """
    if error.validator == "anyOf":
        for inner in _inside(error):
            yield from meant_places(inner, root)
    value: Any = error.instance
    if error.validator != "additionalProperties" or not isinstance(error.schema, dict):
        return
    parts, known = list(error.absolute_path), list(error.schema["properties"])
    there = {pointer_of([*parts, key]) for key in value}
    for key in [key for key in value if key not in known and len(key) <= NEAR_CHARACTERS][:MAX_FAULTS]:
        meant = {*places_of(key, root, str(parts[0]) if parts else ""), *near_places(key, root)}
        yield from (meant | {pointer_of([*parts, near]) for near in _near(key, known)}) - there


def _described(key: str, schema: dict[str, Any], root: dict[str, Any]) -> str:
    described = schema["properties"][key]
    if "$ref" in described:
        described = root["definitions"][described["$ref"].rsplit("/", 1)[1]]
    return str(described["description"]).rstrip(".")


def _inside(error: ValidationError) -> list[ValidationError]:
    """Of several allowed forms, the errors of the one that a list or an object was meant to have."""
    if not isinstance(error.instance, list | dict):
        return []
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.schema_path[0], []).append(inner)
    meant = [
        found
        for found in branches.values()
        if not any(e.validator in ("type", "const", "enum") and not e.path for e in found)
    ]
    return meant[0] if meant else []


def canonical(value: Any) -> str:
    """One text for equal values."""
    return json.dumps(value, sort_keys=True)


def _repeated(values: list[Any]) -> Any:
    """The entry that a list holds more than once."""
    twice, _ = Counter(canonical(value) for value in values).most_common(1)[0]
    return json.loads(twice)


def _expected(rule: str, limit: Any, schema: dict[str, Any]) -> str:
    if rule in LIMITS:
        return LIMITS[rule].format(limit)
    if rule == "type":
        return _of_type(limit, schema.get("examples"))
    if rule == "enum":
        return f"one of {', '.join(json.dumps(choice) for choice in limit)}"
    if rule == "anyOf":
        return " or ".join(_form(option) for option in limit)
    if rule in ("minProperties", "maxProperties"):
        return f"one of {', '.join(schema['properties'])}"
    if rule == "pattern":
        return f"the form of {json.dumps(schema['examples'][0])}"
    return {"const": json.dumps(limit), "uniqueItems": "each entry once"}[rule]


def _of_type(name: str, examples: list[Any] | None) -> str:
    """The right form of a value, shown by an example of the schema's where that is short."""
    example = json.dumps(examples[0], ensure_ascii=False) if examples else ""
    if not example or len(example) > SHOWN_CHARACTERS or name == "boolean":
        return TYPES[name]
    return f"{TYPES[name].removesuffix(' { … }').removesuffix(' [ … ]')} such as {example}"


def _form(option: dict[str, Any]) -> str:
    if "enum" in option:
        return f"one of {', '.join(json.dumps(choice) for choice in option['enum'])}"
    if "const" in option:
        return json.dumps(option["const"])
    if "minimum" in option and "maximum" in option:
        return f"{TYPES[option['type']]} from {option['minimum']} to {option['maximum']}"
    return TYPES[option["type"]] if "type" in option else "Jinja"


def _hint(rule: str, limit: Any, value: Any, schema: dict[str, Any]) -> str:
    if rule == "pattern":
        return str(schema.get("description", ""))
    if rule == "type" and isinstance(value, str) and limit in ("integer", "number", "boolean"):
        return "Remove the quotes"
    if rule == "enum":
        return _nearest(value, limit)
    if rule == "anyOf":
        return _nearest(value, [choice for option in limit for choice in option.get("enum", [option.get("const")])])
    return ""


def _nearest(value: Any, choices: list[Any]) -> str:
    """The choice that a misspelt key or value most likely meant."""
    near = _near(value, choices) if isinstance(value, str) and len(value) <= NEAR_CHARACTERS else []
    return f"Did you mean {json.dumps(near[0])}?" if near else ""


def _near(value: str, choices: list[Any]) -> list[str]:
    words = {choice.lower(): choice for choice in choices if isinstance(choice, str)}
    return [words[near] for near in difflib.get_close_matches(value.lower(), list(words), 1, 0.65)]
