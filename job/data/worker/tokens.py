"""Which tokens cover which characters."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from functools import cached_property
from typing import Any

from job.data.worker.wire import IGNORED

Span = tuple[int, int]


class Tokens:
    """The tokens of an encoded text: `ids` are int32.

    Some tokenizers leave the space before a word out of its offsets: what no token covers belongs to the next token.
    Few places of a text are looked for, so that the offsets of all tokens stay where they are, in Rust.
    """

    def __init__(self, encoding: Any) -> None:
        self.ids = array("i", encoding.ids)
        self._encoding = encoding

    def labels(self, spans: list[Span]) -> array[int]:
        """Ids of the tokens that overlap a span, `IGNORED` elsewhere."""
        labels = array("i", [IGNORED]) * len(self.ids)
        for start, end in spans:
            first, after = self.covering(start, end)
            labels[first:after] = self.ids[first:after]
        return labels

    def goes_over(self, place: int) -> bool:
        """Whether a token holds characters before this place and after it."""
        token = self.ending_after(place)
        return token < len(self.ids) and self._begins(token) < place

    def chars(self, token: int) -> Span:
        """The token's characters."""
        start, end = self._encoding.token_to_chars(token)
        return start, end

    def ending_after(self, place: int) -> int:
        """The first token that ends after this place."""
        token = self._encoding.char_to_token(place)
        return bisect_right(self._ends, place) if token is None else int(token)

    def covering(self, start: int, end: int) -> Span:
        """The first token of these characters, and the one after the last."""
        if start >= end:
            return 0, 0
        after = min(self.ending_after(end - 1) + 1, len(self.ids))
        while after < len(self.ids) and self.chars(after)[0] < end:  # of one character's bytes
            after += 1
        return self.ending_after(start), after

    def _begins(self, token: int) -> int:
        ends_before = self.chars(token - 1)[1] if token else 0
        return min(self.chars(token)[0], ends_before)

    @cached_property
    def _ends(self) -> list[int]:
        return [end for _, end in self._encoding.offsets]
