"""Rows of JSON files: JSON Lines, an array of rows, or an object around such an array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from job.data.files import BYTE_ORDER_MARK, MAX_ROW_BYTES, DataFile, is_sentence
from job.data.worker.json_text import LaxError, once
from job.data.worker.messages import names

Row = dict[str, Any]

MAX_WRAPPED_BYTES = 512 << 20
NOT_SPACE = re.compile(r"[^ \t\r\n]")
CHUNK_CHARACTERS = 1 << 20


def read_jsonl(file: DataFile) -> Iterator[tuple[int, Row]]:
    """Each row with its line."""
    for number, line in file.lines():
        yield number, file.row(file.parse(file.decode(line, number), number), number, "line")


def read_json(file: DataFile) -> Iterator[Row]:
    """An array of rows (streamed), one object wrapping such an array (read whole), or JSON Lines named .json."""
    line, more = _opening(file)
    if not line:
        return
    if line.startswith(b"["):
        yield from _read_array(file)
    elif _is_jsonl(line, more):
        yield from (row for _, row in read_jsonl(file))
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


def json_remarks(file: DataFile) -> list[str]:
    """What is beside the list of rows in an object that holds one."""
    line, more = _opening(file)
    if not line or line.startswith(b"[") or (more and _is_object(line)):
        return []
    value = file.row(_whole(file), 1)
    name = _wrapped(value)
    others = [ascii(key) for key in value if key != name]
    if name is None or not others:
        return []
    return [f"its rows are those of the key {name!a:.60}; not read: {names(others)}"]


def _unwrap(value: Any, file: DataFile) -> Iterator[Row]:
    """The list of rows inside a top-level object; an object without one such list is itself the only row."""
    value = file.row(value, 1)
    name = _wrapped(value)
    if name is None and (what := _many(value)):
        hint = "Write its rows as a list; pandas does with to_json(path, orient='records')"
        expected = "[{…}, {…}], or JSON Lines"
        raise file.fault("one object is one row, and this one looks like many", None, what, expected, hint)
    yield from (file.row(row, number) for number, row in enumerate(value[name], 1)) if name is not None else [value]


def _wrapped(value: Row) -> str | None:
    """The key of the one list of rows; a conversation is not one."""
    found = [
        name
        for name, item in value.items()
        if isinstance(item, list) and item and all(isinstance(row, dict) for row in item)
    ]
    return found[0] if len(found) == 1 and not {"role", "from"} & value[found[0]][0].keys() else None


def _many(value: Row) -> str:
    """What makes an object look like many rows rather than one, as people and pandas write them; empty if nothing."""
    items = list(value.values())
    first = items[0] if len(items) > 1 else None
    if isinstance(first, dict) and all(isinstance(item, dict) and item.keys() == first.keys() for item in items):
        return f"{len(items)} keys, each with an object of the same keys"
    columns = [item for item in items if isinstance(item, list) and not any(isinstance(row, dict) for row in item)]
    if (
        isinstance(first, list)
        and len(first) > 1
        and len(columns) == len(items) == sum(len(first) == len(c) for c in columns)
    ):
        return f"{len(items)} keys, each with a list of {len(first)}"
    if isinstance(first, str) and any(is_sentence(key) for key in value):
        return f"{len(items)} keys, some of them sentences"
    return ""


def _read_array(file: DataFile) -> Iterator[Row]:
    """The elements of a top-level array, decoded one by one from a moving window of text."""
    with file.damage_named(), file.open_text() as opened:
        window, number, sign = _Window(file, opened), 0, ","
        window.take()  # the bracket that opens it
        while sign == "," and (number or window.ahead() != "]"):
            number += 1
            yield file.row(window.value(number), number)
            sign = window.take()
            if sign not in (",", "]"):
                raise file.fault("not JSON: the array breaks off or is malformed", None, f"after row {number}")
            if sign == "," and window.ahead() == "]":
                raise file.fault("not JSON: there is a comma after the last row", None, f"after row {number}")
        if not number:
            window.take()
        if window.ahead():
            raise file.fault("not JSON: text after the array")


class _Window:
    """A file's text, of which what was read is let go."""

    def __init__(self, file: DataFile, opened: IO[str]) -> None:
        self._file = file
        self._opened = opened
        self._decoder = json.JSONDecoder(object_pairs_hook=once)
        self._text, self._at = "", 0

    def ahead(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            if found := NOT_SPACE.search(self._text, self._at):
                self._at = found.start()
                return found[0]
            self._at = len(self._text)
            if not self._more():
                return ""

    def take(self) -> str:
        """The same, and goes on after it."""
        found = self.ahead()
        self._at += len(found)
        return found

    def value(self, number: int) -> Any:
        """The value that begins next, that of row `number`."""
        self.ahead()
        while True:
            with suppress(ValueError, RecursionError):  # not whole yet, or never
                value, self._at = self._decode(number)
                return value
            if len(self._text) - self._at > MAX_ROW_BYTES or not self._more():
                raise self._file.fault("not JSON: the array breaks off or is malformed", None, f"in row {number}")

    def _decode(self, number: int) -> tuple[Any, int]:
        try:
            return self._decoder.raw_decode(self._text, self._at)
        except LaxError as error:
            raise self._file.fault(f"row {number}: {error}") from None

    def _more(self) -> bool:
        more = self._opened.read(CHUNK_CHARACTERS)
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)
