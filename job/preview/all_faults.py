"""Every fault of a spec at once: its own, and those of the files that its sound parts name."""

from __future__ import annotations

import json
import re

from job.errors import Fault, SpecError
from job.preview.quoted import parse_unquoted
from job.preview.seen import look
from job.spec import JobSpec, job_schema, parse_spec
from job.spec.sound import sound_part, sound_view, touched
from job.spec.strict import inspect_json, natural, unsound_places

ROUNDS = 4  # what is left of a faulty spec may break a rule, and what is left of that one another
ENTRY = re.compile(r"/(?:data|evaluation)/(?:\w+/)?(?:train|sources|tasks)/\d+")
NOT_LOOKED_AT = ("limit", "weight")  # of a source, whatever is wrong with them
LOCATING = ("subset", "split")  # what beside `source` says where rows are


def parse_and_look(raw: bytes, with_files: bool = True) -> JobSpec:
    """The spec in `raw`. Raises `SpecError` as `parse_unquoted` does, with what is wrong with local files as well."""
    try:
        return parse_unquoted(raw)
    except SpecError as error:
        faults = [*error.faults, *(_of_files(raw, error.faults) if with_files else ())]
        raise SpecError(*sorted(faults, key=lambda fault: natural(fault.where))) from None


def _of_files(raw: bytes, faults: tuple[Fault, ...]) -> list[Fault]:
    try:
        document, _ = inspect_json(raw)
    except SpecError:
        return []
    unsound = unsound_places(document, job_schema(), list(faults))
    if unsound is None:
        return []
    for _ in range(ROUNDS):
        part = sound_part(sound_view(document, unsound), job_schema(), job_schema())
        try:
            found = look(parse_spec(json.dumps(part).encode())).failures
        except SpecError as left:
            places = {fault.where for fault in left.faults}
            unsound |= (places - unsound) or {_wider(place) for place in places}
        else:
            doubtful = [place for place in unsound if place.rpartition("/")[2] not in NOT_LOOKED_AT]
            return [fault for error in found for fault in error.faults if not _doubtful(fault.where, doubtful)]
    return []


def _wider(place: str) -> str:
    """What to leave out as well, where a rule misses what is to be at `place`: the format asks for it."""
    entry = ENTRY.match(place)
    return f"{entry[0]}/format" if entry and entry[0] != place else place.rpartition("/")[0]


def _doubtful(place: str, unsound: list[str]) -> bool:
    """Whether one of the `unsound` places was read to find the fault at `place`. A source is there or not whatever its
    rows are taken for.
    """
    entry = ENTRY.match(place)
    if not entry:
        return touched(place, unsound)
    if place != f"{entry[0]}/source":
        return touched(entry[0], unsound)
    return any(touched(where, unsound) for where in (place, *(f"{entry[0]}/{key}" for key in LOCATING)))
