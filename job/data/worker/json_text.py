"""JSON as the standard has it.

Python's reader lets the last of two equal keys win and knows numbers that JSON does not: a row would be learned
otherwise than it was written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn


class LaxError(ValueError):
    """JSON that readers understand differently; it says what."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values, for `object_pairs_hook`. Raises `LaxError` for a key that is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise LaxError(f"the key {str(twice)[:80]!a} is given twice in one object")
    return found


def strict(text: str) -> Any:
    """The value of `text`. Raises `LaxError`, `ValueError` for what is not JSON, and `RecursionError`."""
    return json.loads(text, object_pairs_hook=once, parse_constant=_no_number, parse_float=_finite)


def _no_number(word: str) -> NoReturn:
    raise LaxError(f"{word} is not a number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise LaxError(f"the number {digits[:40]} is too large")
    return value


def strings(value: Any) -> Iterator[str]:
    """Every string within `value`, keys aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)
