"""Tokens of the vocabulary that are not text, where a row's own text has them."""

from __future__ import annotations

import re
from collections.abc import Collection

from job.data.worker.examples import Chat, Document, Example, Labelled, Pair, Preference

BRACKETED = re.compile(r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]")  # what they look like; some vocabularies have 65k


class ControlTokens:
    """`tokens`: those of the vocabulary."""

    def __init__(self, tokens: Collection[str]) -> None:
        self._tokens = frozenset(tokens)
        odd = [re.escape(token) for token in tokens if token and not BRACKETED.fullmatch(token)]
        self._form = re.compile("|".join([BRACKETED.pattern, *odd]))

    def written_in(self, example: Example) -> set[str]:
        """`control`, and each of them that is in the row's text."""
        match example:
            case Preference(chosen, rejected):
                return self.written_in(chosen) | self.written_in(rejected)
            case Labelled(answer):
                return self.written_in(answer)
            case Document(text):
                texts = [text]
            case Pair(prompt, completion):
                texts = [prompt, completion]
            case Chat(messages):
                texts = [message["content"] for message in messages]
        written = {token for text in texts for token in self._form.findall(text)}
        found = {f"token {token}" for token in written & self._tokens}
        return found | {"control"} if found else found
