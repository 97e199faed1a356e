"""Text with learned spans as token ids with labels. It runs in the worker processes and needs only `tokenizers`."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from job.data.worker.messages import RowFault
from job.data.worker.tokens import Span, Tokens
from job.data.worker.wire import IGNORED
from job.data.worker.words import words_of

RARE = "\U00012031"  # a cuneiform sign, which few vocabularies have
WEIGHT = 3  # numbers of a part that is learned in part
OPENINGS = ("", "\n", ".")  # after which a text is encoded as it is in the middle of another


@dataclass(frozen=True)
class Sequence:
    """Token ids and labels of one training sequence, both int32; label 0 is never learned, having no context.

    `whole_tokens`: how many it would have if nothing had been cut off. `weights`: first token, the one after the last,
    and weight in millionths of each part that is learned in part, int32.
    """

    input_ids: array[int]
    labels: array[int]
    whole_tokens: int
    weights: array[int] = field(default_factory=lambda: array("i"))

    @property
    def truncated(self) -> bool:
        return self.whole_tokens > len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED)


class Tokeniser:
    """The model's tokenizer; `prefix_ids` open raw text (BOS, if the model uses one) and `eos_id` closes it."""

    def __init__(self, tokenizer: Any, max_seq_length: int, prefix_ids: list[int], eos_id: int | None) -> None:
        self._tokenizer = tokenizer
        self._words = words_of(tokenizer)
        self._max_seq_length = max_seq_length
        self._prefix_ids = prefix_ids
        self._eos_ids = [] if eos_id is None else [eos_id]

    def encode(self, text: str) -> Tokens:
        """The text's tokens, without added special ones. Raises `RowFault` for text that is not Unicode, and where the
        tokenizer's own code breaks on it: a regex that never comes to an end.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowFault(f"a lone surrogate {text[error.start]!a} is not a character") from None
        try:
            if self._words is not None:
                return self._words.tokens(text)
            return Tokens(self._tokenizer.encode(text, add_special_tokens=False))
        except BaseException as error:  # a panic in Rust is not an Exception, and its class cannot be imported
            if type(error).__name__ != "PanicException":
                raise
            raise RowFault(f"the tokenizer breaks on this text: {error}") from None

    def has_unknown(self, sequence: Sequence) -> bool:
        """Whether a character of it was in no token, and neither were its bytes."""
        return self._unknown_id is not None and self._unknown_id in sequence.input_ids

    @cached_property
    def _unknown_id(self) -> int | None:
        """The token for such characters; None in a vocabulary that has all of them, as bytes or by chance."""
        ids = self.encode(RARE).ids
        return ids[-1] if ids and RARE not in self._decode(ids) else None

    def raw_ids(self, text: str) -> list[int]:
        """Ids of raw text as the model expects to read it."""
        return [*self._prefix_ids, *self.encode(text).ids]

    def chat(
        self, text: str, spans: list[Span], starts: list[int], weighted: Iterable[tuple[Span, int]] = ()
    ) -> tuple[Sequence, int]:
        """A rendered conversation, cut on the right to the longest sequence; and how many of `starts`, where answers
        begin, are within a token: who is asked for the answer sees the text before it in other tokens. `weighted`:
        spans with weights in millionths.
        """
        tokens = self.encode(text)
        merged = sum(map(tokens.goes_over, starts))
        whole, weights = self._cut(tokens.ids, tokens.labels(spans)), array("i")
        for span, millionths in weighted:
            first, after = tokens.covering(*span)
            if first < (after := min(after, len(whole.input_ids))):
                weights.extend((first, after, millionths))
        return replace(whole, weights=weights), merged

    def pair(self, prompt: str, completion: str, learn_all: bool) -> tuple[Sequence, str]:
        """Prompt, completion and the end token; cut on the right.

        The prompt's tokens are those that it has by itself, for so it is asked. Where a tokenizer would put its end and
        the completion's beginning into one token, they are encoded apart, which is said as `apart`; as `merged` where
        that would give another text.
        """
        asked, whole, border = self.encode(prompt).ids, self.encode(prompt + completion), ""
        ids = whole.ids
        labels = whole.labels([(len(prompt), len(prompt) + len(completion))])
        if ids[: len(asked)] != asked:
            rest = self._continuation(asked, completion, ids)
            border = "merged" if rest is None else "apart"
            if rest is not None:
                ids, labels = asked + rest, array("i", [IGNORED]) * len(asked) + rest
        hidden = [IGNORED] * len(self._prefix_ids)
        learned = [*hidden, *(ids if learn_all else labels), *self._eos_ids]
        return self._cut([*self._prefix_ids, *ids, *self._eos_ids], learned), border

    def _continuation(self, asked: array[int], completion: str, whole: array[int]) -> array[int] | None:
        """The completion's ids such that after the prompt's own the text is what the whole's says, if there are such:
        some tokenizers put a space before whatever they encode, but not after a line break or a point.
        """
        text = self._decode(whole)
        for opening in OPENINGS:
            opened, ids = self.encode(opening).ids, self.encode(opening + completion).ids
            rest = ids[len(opened) :]
            if ids[: len(opened)] == opened and self._decode(asked + rest) == text:
                return rest
        return None

    def _decode(self, ids: array[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def document(self, text: str) -> Iterator[Sequence]:
        """A document closed by the end token, in pieces of the longest sequence; every token is in one piece."""
        ids = [*self.raw_ids(text), *self._eos_ids]
        for start, stop in pieces(len(ids), self._max_seq_length):
            piece = ids[start:stop]
            yield _sequence(piece, piece, len(piece))

    def _cut(self, ids: list[int] | array[int], labels: list[int] | array[int]) -> Sequence:
        most = self._max_seq_length
        return _sequence(ids[:most], labels[:most], len(ids))


def _sequence(ids: list[int] | array[int], labels: list[int] | array[int], whole_tokens: int) -> Sequence:
    learned = array("i", labels)
    if learned:
        learned[0] = IGNORED
    return Sequence(array("i", ids), learned, whole_tokens)


def pieces(tokens: int, longest: int) -> Iterator[Span]:
    """Bounds of consecutive pieces of at most `longest` tokens, none of which is a single token after others."""
    start = 0
    while start < tokens:
        stop = min(start + longest, tokens)
        if tokens - stop == 1:  # a piece of one token would teach nothing
            stop -= 1
        yield start, stop
        start = stop
