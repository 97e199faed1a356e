"""Where a key is in a spec that other tools have under another name, or that is written in another section."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from job.spec.foreign import IN_SECTION, INSTEAD, NAMES

SHOWN_PLACES = 3
NEARNESS = 0.8  # of two spellings, 1 for the same


def hint_of(key: str, root: dict[str, Any], section: str) -> str:
    """What to write where `key` is found in `section` (of the whole spec, if it is empty); empty where nobody knows."""
    plain = _plain(key)
    if plain in INSTEAD and plain not in IN_SECTION.get(section, {}):
        return INSTEAD[plain]
    return f"Here it is {' or '.join(places)}" if (places := places_of(key, root, section)) else ""


def places_of(key: str, root: dict[str, Any], section: str = "") -> list[str]:
    """Pointers of what `key`, found in `section`, means in the schema `root`; none if unknown or in too many places."""
    plain = _plain(key)
    if known := IN_SECTION.get(section, {}).get(plain) or NAMES.get(plain):
        return [known]
    found = [pointer for name, pointer in keys_of(root, root) if name == plain]
    return found if len(found) <= SHOWN_PLACES else []


def near_places(key: str, root: dict[str, Any]) -> list[str]:
    """Pointers of what `key` was to mean if it is misspelt, here or by the name that another tool has."""
    known = [*(name for name, _ in keys_of(root, root)), *NAMES]
    near = difflib.get_close_matches(_plain(key), known, 1, NEARNESS)
    return places_of(near[0], root) if near else []


def keys_of(schema: dict[str, Any], root: dict[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """Every key below `schema` with its pointer, of a list's entries those of the first; rows are described once."""
    for name, sub in schema.get("properties", {}).items():
        pointer, resolved = f"{at}/{name}", _resolved(sub, root)
        yield name, pointer
        if name != "sources":
            yield from keys_of(resolved, root, pointer)
            yield from keys_of(_resolved(resolved.get("items", {}), root), root, f"{pointer}/0")


def _plain(key: str) -> str:
    return key.lower().replace("-", "_")


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = root["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    return found
