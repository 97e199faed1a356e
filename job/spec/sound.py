"""What of a faulty document can still be looked at: rules read what is sound, and files are looked for beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from job.spec.wording import pointer_of

Json = dict[str, Any]
Broken = dict[str, Any]  # places that are not sound, as a tree of the parts of their pointers; a leaf is such a place


class Unsound(Exception):
    """A place was read of which nobody knows yet what is to be there."""


class SoundObject(dict[str, Any]):
    """An object without its `unsound` keys, be they there or missing: who reads one, or all, gets `Unsound`."""

    def __init__(self, sound: Json, unsound: Iterable[str]) -> None:
        super().__init__(sound)
        self.unsound = frozenset(unsound)

    def __getitem__(self, key: str) -> Any:
        self._require(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._require(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._require(key)
        return super().__contains__(key)

    def _require(self, key: object) -> None:
        if key in self.unsound:
            raise Unsound(key)

    def _refuse(self, *_: object) -> NoReturn:
        raise Unsound

    __iter__ = keys = items = values = __eq__ = _refuse
    __hash__ = None


def sound_view(document: Json, pointers: Iterable[str]) -> Json:
    """`document` as rules may read it where what is at `pointers` is not sound. A list with such an entry is not sound
    as a whole.
    """
    tree: Broken = {}
    for pointer in sorted(pointers, key=len, reverse=True):  # what is around another comes last and takes its place
        *around, last = pointer.split("/")[1:]
        below = tree
        for part in around:
            below = below.setdefault(part, {})
        below[last] = {}
    view: Json = _view(document, tree)
    return view


def _view(value: Any, broken: Broken | None) -> Any:
    """`_GONE` where nothing of it is sound."""
    if broken is None:
        return value
    if isinstance(value, list) and broken:
        entries = [_view(item, broken.get(str(index))) for index, item in enumerate(value)]
        return _GONE if any(entry is _GONE for entry in entries) else entries
    if not isinstance(value, dict) or not broken:
        return _GONE
    names = {key: pointer_of((key,)).removeprefix("/") for key in value}
    seen = {key: _view(item, broken.get(names[key])) for key, item in value.items()}
    gone = {key for key, item in seen.items() if item is _GONE}
    missing = broken.keys() - names.values()
    return SoundObject({key: item for key, item in seen.items() if key not in gone}, gone | missing)


_GONE = object()


def sound_part(view: Any, schema: Json, root: Json) -> Any:
    """What of a view is sound, as a document that `schema` may hold for: a key that it needs has an example of it."""
    schema = _resolved(schema, root)
    if isinstance(view, list):
        return [sound_part(item, schema.get("items", {}), root) for item in view]
    if not isinstance(view, SoundObject):
        return view
    known = schema.get("properties", {})
    part = {key: sound_part(item, known.get(key, {}), root) for key, item in dict.items(view)}
    needed = [key for key in schema.get("required", ()) if key not in part]
    return part | {key: _resolved(known[key], root)["examples"][0] for key in needed}


def _resolved(schema: Json, root: Json) -> Json:
    found: Json = root["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    return found


def touched(place: str, pointers: Iterable[str]) -> bool:
    """Whether one of `pointers` is `place`, in it, or around it."""
    return any(f"{place}/".startswith(f"{p}/") or f"{p}/".startswith(f"{place}/") for p in pointers)
