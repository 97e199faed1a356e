"""JSON as strict as a public API needs it: what `json.loads` and a schema let through is refused here.

Refused before the schema: more than 1 MiB, deeper than 32, bytes that are not UTF-8, duplicate keys, NaN and Infinity
(also as 1e400), integers of thousands of digits, lone surrogates, values that look like secrets. In the schema `$` does
not match before a trailing newline, and `2.0` is an integer, as JSON Schema has it; the resolved spec has it as `2`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
from jsonschema.exceptions import ValidationError

from job.errors import Fault, SpecError
from job.host.credentials import looks_secret
from job.spec.wording import MAX_FAULTS, canonical, in_words, meant_places, pointer_of, secret_fault, show

__all__ = ["faults_of_schema", "inspect_json", "load_schema", "one_per_place", "read_json", "show"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
Pointer = tuple[str | int, ...]


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came twice."""

    duplicates: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    if len(result) < len(pairs):
        result.duplicates = tuple(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
    return result


def read_json(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises `SpecError` naming each fault with its pointer."""
    document, faults = inspect_json(raw)
    if faults:
        raise SpecError(*faults)
    return document


def inspect_json(raw: bytes) -> tuple[dict[str, Any], list[Fault]]:
    """The JSON object in `raw` and what is wrong with its values. Raises `SpecError` where there is no object."""
    if len(raw) > MAX_BYTES:
        raise SpecError(
            "the spec is too large", found=f"{len(raw)} bytes or more", expected=f"at most {MAX_BYTES} bytes"
        )
    text = _text(raw)
    try:
        document = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        _not_json(error)
    except RecursionError:
        raise SpecError("the spec is nested too deeply", expected=f"at most {MAX_DEPTH} levels") from None
    except ValueError:  # Python reads no longer integer, as its time grows with the square
        raise SpecError("a number is too long", expected="at most 4300 digits") from None
    if not isinstance(document, dict):
        raise SpecError("the spec must be a JSON object", found=show(document), expected="{ … }")
    return document, list(islice(_value_faults(document, ()), MAX_FAULTS))


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {raw[error.start]:#04x} at offset {error.start}"
        raise SpecError("the spec is not UTF-8", found=found, hint="Save the file as UTF-8") from None
    if text.startswith("\ufeff"):
        raise SpecError("the spec begins with a byte order mark", hint="Save the file as UTF-8 without one")
    if not text.strip():
        raise SpecError("the spec is empty", expected="a JSON object { … }")
    return text


SLIPS = {
    "'": "JSON strings take double quotes",
    "/": "JSON has no comments",
    "#": "JSON has no comments",
    "}": "Look for an extra comma just before",
    "]": "Look for an extra comma just before",
    "T": "JSON writes true in lower case",
    "F": "JSON writes false in lower case",
    '"': "Look for a missing comma just before",
    ",": "There is a comma too many",
}


def _not_json(error: json.JSONDecodeError) -> NoReturn:
    at = error.doc[error.pos : error.pos + 1]
    hint = SLIPS.get(at, "The text ends too early" if not error.doc[error.pos :].strip() else "")
    raise SpecError(f"not JSON: {error.msg}", found=f"line {error.lineno}, column {error.colno}", hint=hint) from None


def _value_faults(value: Any, at: Pointer) -> Iterator[Fault]:
    """Raises `SpecError` for nesting: nothing after this can look at such a document."""
    if len(at) >= MAX_DEPTH and isinstance(value, dict | list):
        raise SpecError("nested too deeply", where=pointer_of(at), expected=f"at most {MAX_DEPTH} levels")
    if isinstance(value, str):
        yield from _string_faults(value, at)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Fault(
            "not a finite number", where=pointer_of(at), found=str(value), expected="a number that JSON can hold"
        )
    elif isinstance(value, _Object):
        for key in value:
            yield from _string_faults(key, (*at, key))
        for key in value.duplicates:
            yield Fault("this key is given twice", where=pointer_of((*at, key)), expected="each key once")
        for key, item in value.items():
            yield from _value_faults(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _value_faults(item, (*at, index))


def _string_faults(text: str, at: Pointer) -> Iterator[Fault]:
    if looks_secret(text):
        yield secret_fault(pointer_of(at))
    elif any("\ud800" <= character <= "\udfff" for character in text):
        yield Fault(
            "a lone surrogate is not a character", where=pointer_of(at), found=show(text), expected="whole characters"
        )


# -------------------------------------------------------------------------------------------------- schemas


def load_schema(name: str) -> dict[str, Any]:
    """A shipped schema: `schemas/<name>.schema.json`, in the package or, in a checkout, beside it."""
    here = Path(__file__).parents[1]
    for folder in (here / "schemas", here.parent / "schemas"):
        path = folder / f"{name}.schema.json"
        if path.is_file():
            return dict(json.loads(path.read_text("utf-8")))
    raise FileNotFoundError(f"{name}.schema.json is not beside {here}")


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    strict = re.sub(r"\$$", r"\\Z", pattern)
    if isinstance(instance, str) and not re.search(strict, instance):
        yield ValidationError("wrong form")


def _items(validator: Any, items: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """No look at each of a million entries where already their number is wrong."""
    if isinstance(instance, list) and len(instance) <= schema.get("maxItems", len(instance)):
        for index, item in enumerate(instance):
            yield from validator.descend(item, items, path=index)


def _unique(validator: Any, unique: bool, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """In linear time, where jsonschema compares each with each."""
    if unique and isinstance(instance, list) and len({canonical(item) for item in instance}) < len(instance):
        yield ValidationError("an entry is given twice")


def _conditions(*_: Any) -> Iterator[ValidationError]:
    """What editors know of the rules between two places; `job.spec.rules` has them all, and says them in words."""
    return iter(())


def _is_whole(_: Any, value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


_types = jsonschema.Draft7Validator.TYPE_CHECKER.redefine("integer", _is_whole)
_keywords = {"pattern": _pattern, "items": _items, "uniqueItems": _unique}
StrictValidator = jsonschema.validators.extend(jsonschema.Draft7Validator, _keywords, type_checker=_types)  # type: ignore[no-untyped-call]
SpecValidator = jsonschema.validators.extend(StrictValidator, {"allOf": _conditions})  # type: ignore[no-untyped-call]
# At one place the first of these is said: who wrote text for a number need not hear that it is also too small.
PRECEDENCE = ("type", "const", "enum")


def faults_of_schema(document: Any, schema: dict[str, Any]) -> list[Fault]:
    """Every way in which the spec `document` breaks `schema`, one for a place, in the order of their pointers."""
    errors = list(islice(SpecValidator(schema).iter_errors(document), MAX_FAULTS))
    errors.sort(
        key=lambda error: PRECEDENCE.index(error.validator) if error.validator in PRECEDENCE else len(PRECEDENCE)
    )
    return one_per_place([fault for error in errors for fault in in_words(error, schema)])


def unsound_places(document: Any, schema: dict[str, Any], faults: list[Fault]) -> set[str] | None:
    """Pointers of which nobody knows yet what is to be there: those of `faults`, and where unknown keys may belong;
    None where there are too many to know them all.
    """
    if not faults:
        return set()
    if len(faults) >= MAX_FAULTS:
        return None
    errors = list(islice(SpecValidator(schema).iter_errors(document), MAX_FAULTS))
    if len(errors) == MAX_FAULTS:
        return None
    return {fault.where for fault in faults} | {place for error in errors for place in meant_places(error, schema)}


def one_per_place(faults: list[Fault]) -> list[Fault]:
    """The first fault of each pointer, in the pointers' natural order: `/data/train/2` before `/data/train/10`."""
    first: dict[str, Fault] = {}
    for fault in faults:
        first.setdefault(fault.where, fault)
    return sorted(first.values(), key=lambda fault: natural(fault.where))


def natural(pointer: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() and len(part) < 10 else (1, 0, part) for part in pointer.split("/")]
