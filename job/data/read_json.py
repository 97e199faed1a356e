"""Rows of JSON files: JSON Lines, an array of rows, or an object around such an array."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from job.data.files import BYTE_ORDER_MARK, MAX_ROW_BYTES, DataFile, constant

Row = dict[str, Any]

MAX_WRAPPED_BYTES = 512 << 20
CHUNK_CHARACTERS = 1 << 20


def read_jsonl(file: DataFile) -> Iterator[Row]:
    for number, line in file.lines():
        yield file.row(file.parse(file.decode(line, number), number), number, "line")


def read_json(file: DataFile) -> Iterator[Row]:
    """An array of rows (streamed), one object wrapping such an array (read whole), or JSON Lines named .json."""
    line, more = _opening(file)
    if not line:
        return
    if line.startswith(b"["):
        yield from _read_array(file)
    elif _is_jsonl(line, more):
        yield from read_jsonl(file)
    else:
        yield from _unwrap(_whole(file), file)


def is_read_whole(file: DataFile) -> bool:
    """Whether the first row of a .json file is known only once all of it is read."""
    line, more = _opening(file)
    return not line.startswith(b"[") and not _is_jsonl(line, more)


def _is_jsonl(line: bytes, more: bool) -> bool:
    return more and _is_object(line)


def _opening(file: DataFile) -> tuple[bytes, bool]:
    """The first line that is not blank, cut at the longest row, and whether anything follows it."""
    with file.damage_named(), file.open_bytes() as opened:
        pieces = iter(lambda: opened.readline(MAX_ROW_BYTES), b"")
        full = (stripped for piece in pieces if (stripped := piece.removeprefix(BYTE_ORDER_MARK).strip()))
        return next(full, b""), next(full, None) is not None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _whole(file: DataFile) -> Any:
    with file.damage_named(), file.open_bytes() as opened:
        raw = opened.read(MAX_WRAPPED_BYTES + 1)
    if len(raw) > MAX_WRAPPED_BYTES:
        raise file.fault(
            "too large to be one JSON object",
            None,
            f"more than {MAX_WRAPPED_BYTES} bytes",
            "an array of rows or JSON Lines",
        )
    return file.parse(file.decode(raw.removeprefix(BYTE_ORDER_MARK)))


def _unwrap(value: Any, file: DataFile) -> Iterator[Row]:
    """The list of rows inside a top-level object; an object without one such list is itself the only row."""
    value = file.row(value, 1)
    lists = [
        item
        for item in value.values()
        if isinstance(item, list) and item and all(isinstance(row, dict) for row in item)
    ]
    wrapped = len(lists) == 1 and not {"role", "from"} & lists[0][0].keys()
    yield from lists[0] if wrapped else [value]


def _read_array(file: DataFile) -> Iterator[Row]:
    """The elements of a top-level array, decoded one by one from a moving window of text."""
    decoder, number = json.JSONDecoder(parse_constant=constant), 0
    with file.damage_named(), file.open_text() as opened:
        window = opened.read(CHUNK_CHARACTERS).lstrip().removeprefix("[")
        at = 0
        while (at := _skip(window, at, " \t\r\n" + ("," if number else ""))) >= len(window) or window[at] != "]":
            value, end = _element(decoder, window, at)
            if end < len(window):
                number += 1
                yield file.row(value, number)
                at = end
                continue
            more = opened.read(CHUNK_CHARACTERS)
            if not more or len(window) - at > MAX_ROW_BYTES:
                raise file.fault("not JSON: the array breaks off or is malformed", None, f"in row {number + 1}")
            window, at = window[at:] + more, 0
        if window[at + 1 :].strip() or opened.read(CHUNK_CHARACTERS).strip():
            raise file.fault("not JSON: text after the array")


def _element(decoder: json.JSONDecoder, window: str, at: int) -> tuple[Any, int]:
    """The value at `at` and where it ends; at the end of the window if it is not whole yet."""
    try:
        return decoder.raw_decode(window, at)
    except (ValueError, RecursionError):
        return None, len(window)


def _skip(window: str, at: int, characters: str) -> int:
    while at < len(window) and window[at] in characters:
        at += 1
    return at
