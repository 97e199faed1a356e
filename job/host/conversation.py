"""Questions to a child that goes on afterwards, and its answers: a file each, under a name that both know.

Whoever asks sees from the child's process whether it is there still. Questions are answered in their order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job.host.records import encode

LOOK_SECONDS = 0.01
END = "end"
Question = tuple[str, dict[str, Any]]  # what is asked for, and its request as JSON gives it


class Asking:
    """The side that asks; `stem` is a path without a suffix, of which nothing is there yet."""

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self._number = 0

    def ask(self, what: str, request: Any) -> None:
        """`request`: a record, or plain JSON."""
        self._number += 1
        _write(_question(self._stem, self._number), {"what": what, "request": request})

    def answered(self) -> bool:
        return _answer(self._stem, self._number).exists()

    def answer(self) -> Any:
        """To the last question, as JSON gives it."""
        return json.loads(_answer(self._stem, self._number).read_bytes())["answer"]


class Answering:
    """The child's side."""

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self._number = 0

    def questions(self) -> Iterator[Question]:
        """Each, once it is asked and the one before is answered, until there are no more."""
        while True:
            self._number += 1
            path = _question(self._stem, self._number)
            while not path.exists():
                time.sleep(LOOK_SECONDS)
            asked = json.loads(path.read_bytes())
            if asked["what"] == END:
                return
            yield asked["what"], asked["request"]

    def answer(self, answer: Any) -> None:
        """A record, or plain JSON."""
        _write(_answer(self._stem, self._number), {"answer": answer})


def _question(stem: Path, number: int) -> Path:
    return stem.with_name(f"{stem.name}.{number}.asked")


def _answer(stem: Path, number: int) -> Path:
    return stem.with_name(f"{stem.name}.{number}.answered")


def _write(path: Path, content: Any) -> None:
    """Whole, or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(encode(content))
    part.replace(path)
