"""Where two resolved specs differ, in words for who meant them to be the same run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from job.errors import Fault
from job.spec.identity import NOT_THE_WORK
from job.spec.wording import pointer_of, show

SHOWN_KEYS = 8
ABSENT = "nothing"

Json = dict[str, Any]


def differences(stored: Json, wanted: Json) -> list[Fault]:
    """A fault for each key that `wanted` has otherwise than `stored`; the last one says of how many more that is so."""
    stored, wanted = ({key: spec[key] for key in spec if key not in NOT_THE_WORK} for spec in (stored, wanted))
    found = _unequal((), stored, wanted)
    faults = list(islice(found, SHOWN_KEYS))
    more = sum(1 for _ in found)
    return [*faults, *([Fault(f"and {more} more keys differ from those of the stored run")] if more else [])]


def _unequal(at: tuple[str | int, ...], stored: Any, wanted: Any) -> Iterator[Fault]:
    """No deeper than both go: what is stored may be of any form."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(key for key in stored if key not in wanted)]:
            yield from _either(at, key, stored.get(key, _Absent), wanted.get(key, _Absent))
    elif isinstance(stored, list) and isinstance(wanted, list):
        for index in range(max(len(stored), len(wanted))):
            pair = (items[index] if index < len(items) else _Absent for items in (stored, wanted))
            yield from _either(at, index, *pair)
    elif type(stored) is not type(wanted) or stored != wanted:
        yield _differs(at, stored, wanted)


class _Absent:
    """The value of a key that only the other spec has."""


def _either(at: tuple[str | int, ...], key: str | int, stored: Any, wanted: Any) -> Iterator[Fault]:
    if stored is _Absent or wanted is _Absent:
        yield _differs((*at, key), stored, wanted)
    else:
        yield from _unequal((*at, key), stored, wanted)


def _differs(at: tuple[str | int, ...], stored: Any, wanted: Any) -> Fault:
    said, was = (ABSENT if value is _Absent else show(value) for value in (wanted, stored))
    return Fault("this key differs from the stored run's", where=pointer_of(at), found=said, expected=was)
