"""Known secrets taken out of text, however the text spells them.

Libraries show a value escaped (`repr`, JSON, JSON in JSON), URL-coded, wrapped, cut in two, or in base64 after a
user's name. So text is *folded* before it is searched: escapes become the characters they mean, back slashes and
white space go. What is found is replaced in the text as it was.
"""

from __future__ import annotations

import base64
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from job.host.credentials import MASK
from job.host.known_secrets import learned, secret_values

SHORTEST = 6  # a shorter value would be found in every other word
HALVED = 16  # from this length on each half is a secret, too: whoever cuts a line leaves one of them
SPELLING = re.compile(
    r"\\+u00([0-9a-fA-F]{2})|\\+x([0-9a-fA-F]{2})|%(?:25)*([0-9a-fA-F]{2})|&#x([0-9a-fA-F]{1,4});"
    r"|&(amp|lt|gt|quot);|\\+[nrt]|\\+|\s+"
)
ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"'}


class Folded(NamedTuple):
    """Text without its escapes. `starts` are the places in `text` where a piece begins, `origins` those in the
    original; a piece that was escaped is one character of `text`.
    """

    text: str
    starts: list[int]
    origins: list[tuple[int, bool]]

    def origin(self, place: int) -> tuple[int, bool]:
        """Where the character at `place` begins in the original, and whether it was escaped."""
        piece = bisect_right(self.starts, place) - 1
        begin, escaped = self.origins[piece]
        return (begin, True) if escaped else (begin + place - self.starts[piece], False)


def fold(text: str) -> Folded:
    pieces: list[str] = []
    starts: list[int] = []
    origins: list[tuple[int, bool]] = []
    length = end = 0

    def add(piece: str, origin: int, escaped: bool) -> None:
        nonlocal length
        if piece:
            starts.append(length)
            origins.append((origin, escaped))
            pieces.append(piece)
            length += len(piece)

    for found in SPELLING.finditer(text):
        add(text[end : found.start()], end, False)
        number = next((group for group in found.groups()[:4] if group), None)
        character = chr(int(number, 16)) if number else ENTITIES.get(found[5] or "", "")
        add("" if character.isspace() or character == "\\" else character, found.start(), True)
        end = found.end()
    add(text[end:], end, False)
    return Folded("".join(pieces), starts, origins)


def forms(value: str) -> set[str]:
    """What must not be read of one secret: itself and its parts, folded, and base64 at each of its three alignments."""
    parts = {text for part in (value, *value.split()) for text in (part.strip(), fold(part).text)}
    whole = value.strip().encode("utf-8", "surrogateescape")
    coded = {_base64(whole, before) for before in range(3)}
    parts |= coded | {text.replace("+", "-").replace("/", "_") for text in coded} | {whole.hex()}
    halves = [(part[: len(part) // 2], part[len(part) // 2 :]) for part in parts if len(part) >= HALVED]
    return {part for part in (*parts, *(half for pair in halves for half in pair)) if len(part) >= SHORTEST}


def _base64(value: bytes, before: int) -> str:
    """The characters of base64 that depend on `value` alone, where so many other bytes come before it."""
    text = base64.b64encode(bytes(before) + value).decode()
    return text[-(-before * 8 // 6) : (before + len(value)) * 8 // 6]


def _longest_first(found: set[str]) -> list[str]:
    return sorted(found, key=len, reverse=True)


class Redactor:
    """Replaces in text every secret of the environment and those learned later. Built before variables are dropped."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        values = set(secret_values(os.environ if environment is None else environment))
        self._forms = _longest_first({form for value in values for form in forms(value)})
        self._learned = 0

    def __call__(self, text: str) -> str:
        if new := learned()[self._learned :]:
            self._learned += len(new)
            self._forms = _longest_first({*self._forms, *(form for value in new for form in forms(value))})
        if not self._forms:
            return text
        folded = fold(text)
        spans = [span for form in self._forms for span in _spans(text, folded, form)]
        for start, end in reversed(_joined(spans)):
            text = text[:start] + MASK + text[end:]
        return text


def _spans(text: str, folded: Folded, form: str) -> Iterator[tuple[int, int]]:
    """Where `form` is in `text`, from the back slashes that escape its first character to its last."""
    for place in _places(form, text):
        yield len(text[:place].rstrip("\\")), place + len(form)
    for place in _places(form, folded.text):
        start, _ = folded.origin(place)
        last, escaped = folded.origin(place + len(form) - 1)
        spelling = SPELLING.match(text, last) if escaped else None
        yield len(text[:start].rstrip("\\")), spelling.end() if spelling else last + 1


def _places(form: str, text: str) -> Iterator[int]:
    place = text.find(form)
    while place >= 0:
        yield place
        place = text.find(form, place + len(form))


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that touch or overlap as one, in order."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined
