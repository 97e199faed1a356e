"""Text with learned spans as token ids with labels. It runs in the worker processes and needs only `tokenizers`."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from job.data.worker.messages import RowFault
from job.data.worker.wire import IGNORED

Span = tuple[int, int]
RARE = "\U00012031"  # a cuneiform sign, which few vocabularies have
OPENINGS = ("", "\n", ".")  # after which a text is encoded as it is in the middle of another


@dataclass(frozen=True)
class Sequence:
    """Token ids and labels of one training sequence, both int32; label 0 is never learned, having no context.

    `whole_tokens`: how many it would have if nothing had been cut off.
    """

    input_ids: array[int]
    labels: array[int]
    whole_tokens: int

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
        self._max_seq_length = max_seq_length
        self._prefix_ids = prefix_ids
        self._eos_ids = [] if eos_id is None else [eos_id]

    def encode(self, text: str) -> Any:
        """Ids and character offsets, without added special tokens. Raises `RowFault` for text that is not Unicode, and
        where the tokenizer's own code breaks on it: a regex that never comes to an end.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowFault(f"a lone surrogate {text[error.start]!a} is not a character") from None
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except BaseException as error:  # a panic in Rust is not an Exception, and its class cannot be imported
            if type(error).__name__ != "PanicException":
                raise
            raise RowFault(f"the tokenizer breaks on this text: {error}") from None

    def has_unknown(self, sequence: Sequence) -> bool:
        """Whether a character of it was in no token, and neither were its bytes."""
        return self._unknown_id in sequence.input_ids

    @cached_property
    def _unknown_id(self) -> int | None:
        """The token for such characters; None in a vocabulary that has all of them, as bytes or by chance."""
        ids = self.encode(RARE).ids
        return ids[-1] if ids and RARE not in self._decode(ids) else None

    def raw_ids(self, text: str) -> list[int]:
        """Ids of raw text as the model expects to read it."""
        return [*self._prefix_ids, *self.encode(text).ids]

    def chat(self, text: str, spans: list[Span], starts: list[int]) -> tuple[Sequence, int]:
        """A rendered conversation, cut on the right to the longest sequence; and how many of `starts`, where answers
        begin, are within a token: who is asked for the answer sees the text before it in other tokens.
        """
        encoding = self.encode(text)
        ids, tokens = encoding.ids, Tokens(encoding)
        merged = sum(tokens.goes_over(start) for start in starts)
        return self._cut(ids, _labels(ids, tokens, spans)), merged

    def pair(self, prompt: str, completion: str, learn_all: bool) -> tuple[Sequence, str]:
        """Prompt, completion and the end token; cut on the right.

        The prompt's tokens are those that it has by itself, for so it is asked. Where a tokenizer would put its end and
        the completion's beginning into one token, they are encoded apart, which is said as `apart`; as `merged` where
        that would give another text.
        """
        asked, whole, border = self.encode(prompt).ids, self.encode(prompt + completion), ""
        ids = whole.ids
        labels = _labels(ids, Tokens(whole), [(len(prompt), len(prompt) + len(completion))])
        if ids[: len(asked)] != asked:
            rest = self._continuation(asked, completion, ids)
            border = "merged" if rest is None else "apart"
            if rest is not None:
                ids, labels = [*asked, *rest], [*[IGNORED] * len(asked), *rest]
        hidden = [IGNORED] * len(self._prefix_ids)
        learned = [*hidden, *(ids if learn_all else labels), *self._eos_ids]
        return self._cut([*self._prefix_ids, *ids, *self._eos_ids], learned), border

    def _continuation(self, asked: list[int], completion: str, whole: list[int]) -> list[int] | None:
        """The completion's ids such that after the prompt's own the text is what the whole's says, if there are such:
        some tokenizers put a space before whatever they encode, but not after a line break or a point.
        """
        text = self._decode(whole)
        for opening in OPENINGS:
            opened, ids = self.encode(opening).ids, self.encode(opening + completion).ids
            rest: list[int] = ids[len(opened) :]
            if ids[: len(opened)] == opened and self._decode([*asked, *rest]) == text:
                return rest
        return None

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def document(self, text: str) -> Iterator[Sequence]:
        """A document closed by the end token, in pieces of the longest sequence; every token is in one piece."""
        ids = [*self.raw_ids(text), *self._eos_ids]
        for start, stop in pieces(len(ids), self._max_seq_length):
            piece = ids[start:stop]
            yield _sequence(piece, piece, len(piece))

    def _cut(self, ids: list[int], labels: list[int]) -> Sequence:
        most = self._max_seq_length
        return _sequence(ids[:most], labels[:most], len(ids))


def _sequence(ids: list[int], labels: list[int], whole_tokens: int) -> Sequence:
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


class Tokens:
    """Which tokens of an encoding cover which characters.

    Some tokenizers leave the space before a word out of its offsets: what no token covers belongs to the next token.
    Few places of a text are looked for, so that the offsets of all tokens stay where they are, in Rust.
    """

    def __init__(self, encoding: Any) -> None:
        self._encoding, self._count = encoding, len(encoding)

    def covering(self, start: int, end: int) -> tuple[int, int]:
        """The first token of these characters, and the one after the last."""
        if start >= end:
            return 0, 0
        after = min(self._ending_after(end - 1) + 1, self._count)
        while after < self._count and self._encoding.token_to_chars(after)[0] < end:  # of one character's bytes
            after += 1
        return self._ending_after(start), after

    def goes_over(self, place: int) -> bool:
        """Whether a token holds characters before this place and after it."""
        token = self._ending_after(place)
        return token < self._count and self._begins(token) < place

    def _begins(self, token: int) -> int:
        ends_before = self._encoding.token_to_chars(token - 1)[1] if token else 0
        return int(min(self._encoding.token_to_chars(token)[0], ends_before))

    def _ending_after(self, place: int) -> int:
        """The first token that ends after this place."""
        token = self._encoding.char_to_token(place)
        return bisect_right(self._ends, place) if token is None else int(token)

    @cached_property
    def _ends(self) -> list[int]:
        return [end for _, end in self._encoding.offsets]


def _labels(ids: list[int], tokens: Tokens, spans: list[Span]) -> list[int]:
    """Ids of the tokens that overlap a span, `IGNORED` elsewhere."""
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        first, last = tokens.covering(start, end)
        labels[first:last] = ids[first:last]
    return labels
