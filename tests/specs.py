"""Specs for tests: the smallest valid one, and changes to it."""

from __future__ import annotations

import copy
import json
from typing import Any

from job.errors import Fault, SpecError
from job.spec import JobSpec, parse_spec

MINIMAL: dict[str, Any] = {
    "version": 1,
    "name": "small",
    "model": {"source": "hf://org/name"},
    "data": {"train": [{"source": "rows.jsonl", "format": "messages"}]},
    "output": {"uri": "out"},
}
LEFT_OUT = object()


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The smallest spec with values put at JSON pointers (or taken away: `LEFT_OUT`); missing objects are made."""
    document = copy.deepcopy(MINIMAL)
    for pointer, value in changes.items():
        *path, last = pointer.split("/")[1:]
        place: Any = document
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if value is LEFT_OUT:
            del place[last]
        else:
            place[int(last) if isinstance(place, list) else last] = value
    return document


def parse(changes: dict[str, Any]) -> JobSpec:
    return parse_spec(json.dumps(changed(changes)).encode())


def faults_of(raw: bytes) -> tuple[Fault, ...]:
    """What is wrong with the spec `raw`; none if nothing is."""
    try:
        parse_spec(raw)
    except SpecError as error:
        return error.faults
    return ()


def faults_with(changes: dict[str, Any]) -> tuple[Fault, ...]:
    return faults_of(json.dumps(changed(changes)).encode())
