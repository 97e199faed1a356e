"""JSON in answers: read strictly, compared by value."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def read(text: str) -> Any:
    """The JSON value that `text` is, white space at its ends aside. Raises `ValueError` for anything else."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def same(first: Any, second: Any) -> bool:
    """Whether two JSON values are one: 1 is 1.0 and not true, the order of keys does not count."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)
