"""Records as JSON and back: frozen dataclasses of plain values, paths, tuples, lists, dicts and other records."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from functools import cache, partial
from pathlib import Path
from typing import Any

PLAIN = (str, int, float, bool, Any)


def encode(record: Any) -> bytes:
    """A record, or plain JSON with records in it, as bytes. Raises `TypeError` for what `build` cannot bring back."""
    return json.dumps(record, default=_plain).encode()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no value of a record: {value!r}")


def build(kind: Any, value: Any, absent_is_none: bool = False) -> Any:
    """`value`, as JSON gives it, in the form that the annotation `kind` asks for. What is absent gets the field's
    default or, with `absent_is_none`, None where that may be. Raises `TypeError` for other fields than the record has.
    """
    if value is None or kind in PLAIN:
        return value
    again = partial(build, absent_is_none=absent_is_none)
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast("type", kind))
        needed = _needed(kind) if absent_is_none else ()
        may_lack = [name for name in needed if type(None) in typing.get_args(hints[name])]
        given = {name: again(hints.get(name), item) for name, item in value.items()}
        return kind(**dict.fromkeys(may_lack) | given)  # type: ignore[operator]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return again(_fitting(inner, value), value)
    if origin in (tuple, list):
        return origin(value if inner[0] in PLAIN else (again(inner[0], item) for item in value))
    if origin is dict:
        return {key: again(inner[1], item) for key, item in value.items()}
    return Path(value) if kind is Path else value


@cache  # half a millisecond for a record of ten fields
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _needed(record: Any) -> set[str]:
    """Fields without a default."""
    fields = dataclasses.fields(record)
    return {field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING}


def _fitting(options: tuple[Any, ...], value: Any) -> Any:
    """The option of a union that gives `value` a form, None for plain values; of several records, by the fields."""
    if isinstance(value, dict):
        records = [option for option in options if dataclasses.is_dataclass(option)]
        if len(records) < 2:
            return next((option for option in options if option in records or typing.get_origin(option) is dict), None)
        for record in records:
            if {field.name for field in dataclasses.fields(record)} >= value.keys() >= _needed(record):
                return record
        raise TypeError(f"no record has the fields {', '.join(value)}")
    if isinstance(value, list):
        return next((option for option in options if typing.get_origin(option) in (tuple, list)), None)
    return Path if isinstance(value, str) and Path in options else None
