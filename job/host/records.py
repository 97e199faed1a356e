"""Records as JSON and back: frozen dataclasses of plain values, paths, tuples, lists, dicts and other records."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any


def encode(record: Any) -> bytes:
    """A record, or plain JSON with records in it, as bytes. Raises `TypeError` for what `build` cannot bring back."""
    return json.dumps(record, default=_plain).encode()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no value of a record: {value!r}")


def build(kind: Any, value: Any) -> Any:
    """`value`, as JSON gives it, in the form that the annotation `kind` asks for; what is absent gets the field's
    default, or None.
    """
    if value is None:
        return None
    if dataclasses.is_dataclass(kind):
        hints, given = typing.get_type_hints(kind), dict[str, Any](value)
        for field in dataclasses.fields(kind):
            if field.name in given or field.default is dataclasses.MISSING:
                given[field.name] = build(hints[field.name], given.get(field.name))
        return kind(**given)  # type: ignore[operator]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return build(next((option for option in inner if _fits(option, value)), None), value)
    if origin in (tuple, list):
        return origin(build(inner[0], item) for item in value)
    if origin is dict:
        return {key: build(inner[1], item) for key, item in value.items()}
    return Path(value) if kind is Path else value


def _fits(option: Any, value: Any) -> bool:
    """Whether an option of a union is the one that gives `value` a form."""
    if isinstance(value, dict):
        return dataclasses.is_dataclass(option) or typing.get_origin(option) is dict
    if isinstance(value, list):
        return typing.get_origin(option) in (tuple, list)
    return isinstance(value, str) and option is Path
