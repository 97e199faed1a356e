"""What a chat template has made of a conversation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """Character offsets of one assistant turn: its text is [start, content_end), learned is [start, end).

    `asked`: whether the text before it is that with which the template asks for an answer.
    """

    start: int
    content_end: int
    end: int
    asked: bool = True


@dataclass(frozen=True)
class Rendered:
    """A conversation's text, its learned turns with the numbers of their messages, and how often what was in the row is
    not in the text, by kind.
    """

    text: str
    turns: tuple[Turn, ...]
    answers: tuple[int, ...]
    remarks: Counter[str]
