"""A spec that quotes a credential of the environment it is read in. It would be stored with the result, as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from job.errors import Fault, SpecError
from job.host.credentials import MASK
from job.host.known_secrets import learned, secret_values
from job.host.redact import fold
from job.spec import JobSpec, parse_spec
from job.spec.wording import pointer_of

SHORTEST = 12  # characters: a shorter one, as of a try-out, may be a word of the spec


def parse_unquoted(raw: bytes) -> JobSpec:
    """The spec in `raw`. Raises `SpecError` as well for each place where it holds a credential of the environment."""
    spec = parse_spec(raw)
    known = {fold(value.strip()).text for value in (*secret_values(os.environ), *learned())}
    secrets = [value for value in known if len(value) >= SHORTEST]
    texts = ((place, fold(text).text) for place, text in _texts(spec.resolved, ())) if secrets else ()
    faults = [
        Fault(
            "this is a credential of the environment; a spec is stored as it is",
            where=pointer_of(place),
            found=MASK,
            expected="a text without it",
            hint="Take it out; where it is not a secret, change the variable that holds it",
        )
        for place, text in texts
        if any(secret in text for secret in secrets)
    ]
    if faults:
        raise SpecError(*faults)
    return spec


def _texts(value: Any, at: Sequence[str | int]) -> Iterator[tuple[Sequence[str | int], str]]:
    """Every text of a document, keys of its objects too, with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield at, key
            yield from _texts(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*at, index))
    elif isinstance(value, str):
        yield at, value
