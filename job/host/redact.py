"""Known secrets taken out of text, however the text spells them.

Libraries show a value escaped (`repr`, JSON, JSON in JSON, HTML), URL-coded, wrapped, coloured, cut in two, or in
base64 after a user's name. So text is *folded* before it is searched: escapes become the characters they mean; back
slashes, white space, colours and what else a reader does not see go. What is found is replaced in the text as it was.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from job.host.credentials import MASK
from job.host.known_secrets import learned, secret_values

SHORTEST = 6  # a shorter value would be found in every other word
HALVED = 16  # from this length on each half is a secret, too: whoever cuts a line leaves one of them
SPELLING = re.compile(
    # colours, as they are and escaped; frames of wrapped text, soft hyphens, spaces of no width
    r"(?:\x1b|\\+(?:u001[bB]|x1[bB]|033|e))\[[0-9;]*m|[\u2500-\u257f\u00ad\u200b-\u200f\u2060\ufeff]"
    r"|\\+u(?:25[0-7][0-9a-fA-F]|00[aA][dD]|200[b-fB-F]|2060|[fF][eE][fF]{2})"
    r"|([\"'])(?:\\+n|\s)+b?\1"  # between parts of one text, as `pprint` writes it
    r"|\\+(?:u00|U000000|x)([0-9a-fA-F]{2})|\\+u\{0*([0-9a-fA-F]{1,4})\}|%(?:25)*(?:u00)?([0-9a-fA-F]{2})"
    r"|&(?:amp;)*#[xX]0*([0-9a-fA-F]{1,4});|&(?:amp;)*#0*([0-9]{1,5});|&(?:amp;)*(lt|gt|quot|apos);|(&)(?:amp;)+"
    r"|\\+[nrt]|\\+([0-3][0-7]{2})|\\+|\s+"
)
# Quotes within quotes, as CSV, SQL and shells write them.
QUOTES = (('"', '""'), ("'", "''"), ("'", "'\"'\"'"), ("'", "'\\''"))
ENTITIES = {"lt": "<", "gt": ">", "quot": '"', "apos": "'"}


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
        character = _meant(found)
        add("" if character.isspace() or character == "\\" else character, found.start(), True)
        end = found.end()
    add(text[end:], end, False)
    return Folded("".join(pieces), starts, origins)


def _meant(found: re.Match[str]) -> str:
    """The character that is spelled so; "" for what is passed over."""
    _, *in_hex, decimal, entity, ampersand, octal = found.groups()
    if number := next(filter(None, in_hex), None):
        return chr(int(number, 16))
    if decimal or octal:
        return chr(min(int(decimal or octal, 10 if decimal else 8), sys.maxunicode))
    return ampersand or ENTITIES.get(entity or "", "")


def forms(value: str) -> set[str]:
    """What must not be read of one secret: itself and its parts, folded, and base64 at each of its three alignments."""
    quoted = [value.replace(quote, instead) for quote, instead in QUOTES if quote in value]
    parts = {text for part in (value, *value.split(), *quoted) for text in (part.strip(), fold(part).text)}
    whole = value.strip().encode("utf-8", "surrogateescape")
    coded = {_base64(whole, before) for before in range(3)}
    parts |= coded | {text.replace("+", "-").replace("/", "_") for text in coded}
    parts |= {whole.hex(), whole.hex().upper(), whole.hex(":"), ",".join(map(str, whole))}
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
