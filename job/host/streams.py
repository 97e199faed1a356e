"""Standard streams that may be missing or go away: a log that nobody can read is not a reason to end a paid run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO, cast

LOST = (OSError, ValueError)  # a pipe without a reader, a full disk, a terminal that hung up; a stream that is closed

LAST_BYTES, LAST_LINES = 1 << 14, 20  # of what libraries printed, where nothing else says what happened
_DIVERTED: list[Path] = []  # none, or the file that what libraries print goes to

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Control characters but tab and line feed; and what turns text around, hides in it or ends a line of it. Letters of
# scripts that are written from right to left need none of these; joiners, which some of them need, may stay.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def harmless(text: str) -> str:
    """`text` without what a terminal would obey, which may come from somebody's data: colours go, other characters that
    control are shown as JSON escapes them.
    """
    return CONTROLS.sub(lambda found: _escaped(found[0]), COLOURS.sub("", text))


def _escaped(character: str) -> str:
    """Beyond four hex digits JSON has two escapes, as UTF-16 has."""
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class LastingStream:
    """A text stream whose every text goes through `change`; what cannot be written is dropped."""

    def __init__(self, stream: IO[str], change: Callable[[str], str] = str) -> None:
        self._stream = stream
        self._change = change

    def write(self, text: str) -> int:
        with suppress(*LOST):
            self._stream.write(self._change(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(*LOST):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def reopen_streams() -> None:
    """Gives a process that was started without one of the three an empty one: the next file that is opened would take
    its number.

    What comes out is UTF-8 in any locale: JSON lines and rendered files are nothing else.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - it lasts as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def settle_streams() -> None:
    """Drops what could not be written, which Python would try again at its end, and end with another exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except LOST:
            with suppress(*LOST):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def divert(path: Path, change: Callable[[str], str], native: bool) -> IO[str]:
    """From here on what Python code prints goes to the file `path`, through `change`, and so does all that children
    print. Returns the standard output that was there before.

    `native`: also what native code writes to standard error, which else stays where a crash is looked for.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2) if native else (1,):
        os.dup2(target, number)
    printed = os.fdopen(target, "w", encoding="utf-8", buffering=1, errors="backslashreplace")
    sys.stdout = sys.stderr = cast("TextIO", LastingStream(printed, change))
    _DIVERTED[:] = [path]
    return out


def streams_of_children() -> tuple[int, int]:
    """Descriptors of a child's standard output and error."""
    return (1, 1) if _DIVERTED else (1, 2)


def last_printed() -> str:
    """The last lines of what libraries and children have printed; "" where that is not diverted or nothing is there."""
    try:
        sys.stdout.flush()
        with _DIVERTED[0].open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            text = file.read().decode("utf-8", "replace")
    except (*LOST, IndexError):
        return ""
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return "\n".join(lines[-LAST_LINES:])
