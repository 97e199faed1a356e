"""Token ids of a text from those of its words, each of which the tokenizer is asked for once.

Only for tokenizers whose ids of a text are, provably, those of its pieces one after the other. A text is cut around
the tokens that are taken out of it before anything else is done with it, and where white space follows a character
that is none. There each of the `KNOWN` patterns ends a match, as none goes on from such a character to white space,
and what is on either side is matched as if it were alone: none looks back, and none looks ahead but from white space.
NFC composes nothing with white space that follows. Other tokenizers encode whole texts.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_right
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

from job.data.worker.tokens import Tokens

WIDTH = array("i").itemsize
MAX_WORDS = 1 << 16  # are kept: some 20 MB
MAX_CHARACTERS = 48  # of one that is kept; longer ones hardly come again
# Not between punctuation and a line break, which may be one token.
CUT = r"(?:(?<=[\w!-~])(?= )|(?<=[0-9A-Za-z])(?=\n))"
WORD = re.compile(rf"[ \n]?[!-~]+{CUT}|.+?(?:{CUT}|\Z)", re.DOTALL)  # the first for speed, of most words
SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # what is short for a word in English
LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
OPENED = r"[^\r\n\p{L}\p{N}]?"
# The alternatives of which the patterns of GPT-2, GPT-4, Llama 3, Qwen, Mistral NeMo and others are made.
KNOWN = frozenset(
    [
        *(SHORT, *SHORT[4:-1].split("|")),
        *(r" ?\p{L}+", rf"{OPENED}\p{{L}}+", rf"{OPENED}[\p{{L}}\p{{M}}]+"),
        *(f"{OPENED}{letters}{end}" for letters in (LOWER, UPPER) for end in ("", f"{SHORT}?")),
        *(r"\p{N}", r"\p{N}+", r" ?\p{N}+", r"\p{N}{1,3}"),
        *(rf" ?[^\s\p{{L}}\p{{N}}]+{end}" for end in ("", r"[\r\n]*", r"[\r\n/]*")),
        *(r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
    ]
)


@lru_cache(maxsize=1)
def words_of(tokenizer: Any) -> Words | None:
    """The words of a `tokenizers.Tokenizer`; None where it may have other ids for a text than for its pieces."""
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.rstrip or token.lstrip or token.single_word or not token.content for token in added):
        return None
    if any(token.normalized and re.search(r"\s", token.content) for token in added):  # one that a cut may go through
        return None
    model, normalizer = tokenizer.model, _state(tokenizer.normalizer)
    if type(model).__name__ != "BPE" or model.dropout or (normalizer and normalizer["type"] != "NFC"):
        return None
    stages = _stages(tokenizer.pre_tokenizer, "pretokenizers")
    if not all(map(_is_known, stages)) or not any(map(_ends_before_space, stages)):
        return None
    if any(map(_trims_the_first, _stages(tokenizer.post_processor, "processors"))):
        return None
    return Words(tokenizer, [token.content for token in added if not token.normalized])


def _state(part: Any) -> dict[str, Any] | None:
    found: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return found


def _stages(part: Any, name: str) -> list[dict[str, Any]]:
    state = _state(part) or {"type": "none"}
    stages: list[dict[str, Any]] = state[name] if state["type"] == "Sequence" else [state]
    return stages


def _is_known(stage: dict[str, Any]) -> bool:
    match stage:
        case {"type": "ByteLevel", "add_prefix_space": False} | {"type": "Digits"}:
            return True
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            inner = SHORT.replace("|", "\0")  # is one alternative, or the end of one
            found = pattern.replace(SHORT, inner).split("|")
            return KNOWN.issuperset(alternative.replace("\0", "|") for alternative in found)
    return False


def _ends_before_space(stage: dict[str, Any]) -> bool:
    """Whether a match begins with white space wherever the one before it has ended; what is between matches is one
    piece.
    """
    return bool(stage.get("use_regex")) or r"\s+" in stage.get("pattern", {}).get("Regex", "").split("|")


def _trims_the_first(stage: dict[str, Any]) -> bool:
    """Whether white space is taken out of offsets in another way where a text begins."""
    return stage["type"] == "ByteLevel" and bool(stage["trim_offsets"] and stage["add_prefix_space"])


class Words(dict[str, bytes]):
    """Ids of each piece, int32 in a row; pieces are encoded when they are asked for."""

    def __init__(self, tokenizer: Any, tokens: list[str]) -> None:
        self._tokenizer = tokenizer
        longest_first = sorted(map(re.escape, tokens), key=len, reverse=True)
        self._tokens = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self.of_piece = lru_cache(maxsize=4096)(self._of_piece)

    def __missing__(self, piece: str) -> bytes:
        ids = array("i", self._tokenizer.encode(piece, add_special_tokens=False).ids).tobytes()
        if len(piece) <= MAX_CHARACTERS:
            if len(self) == MAX_WORDS:
                self.clear()
            self[piece] = ids
        return ids

    def _of_piece(self, piece: str) -> Tokens:
        return Tokens(self._tokenizer.encode(piece, add_special_tokens=False))

    def tokens(self, text: str) -> Joined:
        """Those of a text."""
        pieces: list[str] = []
        for number, part in enumerate(self._tokens.split(text)):
            if number % 2:
                pieces.append(part)
            else:
                pieces += WORD.findall(part)
        return Joined(self, pieces)


class Joined(Tokens):
    """Tokens of pieces, one after the other: the places and numbers of a piece's own are counted on."""

    def __init__(self, words: Words, pieces: list[str]) -> None:
        encoded = list(map(words.__getitem__, pieces))
        self.ids = array("i", b"".join(encoded))
        self._words, self._pieces, self._encoded = words, pieces, encoded

    @cached_property
    def _places(self) -> list[int]:
        return [0, *accumulate(map(len, self._pieces))]

    @cached_property
    def _bytes(self) -> list[int]:
        return [0, *accumulate(map(len, self._encoded))]

    def chars(self, token: int) -> tuple[int, int]:
        piece = bisect_right(self._bytes, token * WIDTH) - 1
        start, end = self._of(piece).chars(token - self._bytes[piece] // WIDTH)
        return self._places[piece] + start, self._places[piece] + end

    def ending_after(self, place: int) -> int:
        piece = bisect_right(self._places, place) - 1
        if piece == len(self._pieces):
            return len(self.ids)
        return self._bytes[piece] // WIDTH + self._of(piece).ending_after(place - self._places[piece])

    def _of(self, piece: int) -> Tokens:
        return self._words.of_piece(self._pieces[piece])
