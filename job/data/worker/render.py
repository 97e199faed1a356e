"""A conversation as text, with the spans of characters that are learned.

Spans are never found by searching for markers. An assistant turn starts where the rendering of the messages before
it plus a generation prompt ends. It ends where its content ends, found by rendering the conversation again with the
turn replaced by one character that occurs nowhere in it, plus the end marker that the template puts after it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from job.data.worker.sandbox import TemplateFailedError, render
from job.data.worker.shape import Chat, Message, RowFault

PRIVATE_USE = range(0xE000, 0xF8FF)  # Unicode's private use area: characters without meaning


@dataclass(frozen=True)
class Turn:
    """Character offsets of one assistant turn: its text is [start, content_end), learned is [start, end)."""

    start: int
    content_end: int
    end: int


@dataclass(frozen=True)
class Rendered:
    text: str
    turns: tuple[Turn, ...]
    tools_ignored: bool = False


class ChatTemplate:
    """A chat template with its variables (`bos_token`, …).

    `end_tokens` are the special tokens of the vocabulary that may close a turn.
    """

    def __init__(self, text: str, variables: dict[str, str], end_tokens: Collection[str]) -> None:
        self._text = text
        self._variables = variables
        self._end_tokens = tuple(sorted(end_tokens, key=len, reverse=True))
        self._end_token = re.compile(r"\s*(?:" + ("|".join(map(re.escape, self._end_tokens)) or "(?!)") + ")")

    def render(self, messages: list[Message], tools: list[Any] | None = None, prompt: bool = False) -> str:
        """What `apply_chat_template(messages, tools, add_generation_prompt=prompt, tokenize=False)` gives."""
        chat = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        return render(self._text, self._variables | chat)

    def conversation(self, chat: Chat) -> Rendered:
        """The rendered conversation and its learned turns; turns with an empty answer are not learned.

        Raises `RowFault` where the template drops or hides a turn, and what `sandbox.render` raises.
        """
        full = self.render(chat.messages, chat.tools)
        self._require_tool_calls(chat, full)
        ignored = chat.tools is not None and self.render(chat.messages) == full
        learned = [i for i, m in enumerate(chat.messages) if m["role"] == "assistant" and i >= chat.first_trained]
        turns = tuple(self._turn(chat, i, full) for i in learned if not is_empty(chat.messages[i]))
        return Rendered(full, turns, ignored)

    def _require_tool_calls(self, chat: Chat, full: str) -> None:
        if not any("tool_calls" in message for message in chat.messages):
            return
        without = [{key: value for key, value in m.items() if key != "tool_calls"} for m in chat.messages]
        if self.attempt(without, chat.tools) == full:
            raise RowFault(
                "the chat template leaves tool calls out, so they cannot be learned; chat_template qwen renders them"
            )

    def attempt(self, messages: list[Message], tools: list[Any] | None, prompt: bool = False) -> str | None:
        """As `render`; None where the template fails on a conversation that we made up, such as one without a user
        turn.
        """
        try:
            return self.render(messages, tools, prompt) if messages or prompt else ""
        except TemplateFailedError:
            return None

    def _turn(self, chat: Chat, index: int, full: str) -> Turn:
        head, tail = self._around(chat, index, full)
        prompt = self.attempt(chat.messages[:index], chat.tools, prompt=True)
        start = len(prompt) if prompt is not None and full.startswith(prompt) else head
        stop = self._stop(chat, index, full)
        content_end = tail if tail is not None else self._closed(full, stop)
        if start is None or content_end is None or not start < content_end <= (stop or len(full)):
            raise RowFault(f"the chat template hides where the answer in message {index + 1} begins or ends")
        return Turn(start, content_end, self._end(full, content_end, stop))

    def _around(self, chat: Chat, index: int, full: str) -> tuple[int | None, int | None]:
        """Lengths of the text before and up to the end of a turn's content, as far as they do not depend on it."""
        mark = next(c for c in map(chr, PRIVATE_USE) if c not in full)
        changed = [*chat.messages[:index], {"role": "assistant", "content": mark}, *chat.messages[index + 1 :]]
        before, found, after = (self.attempt(changed, chat.tools) or "").partition(mark)
        if not found or mark in after or len(before) + len(after) > len(full):
            return None, None
        return (len(before) if full.startswith(before) else None), (
            len(full) - len(after) if full.endswith(after) else None
        )

    def _stop(self, chat: Chat, index: int, full: str) -> int | None:
        """Where the turn with everything that the template puts after it ends, if later turns leave that as it is."""
        if index + 1 == len(chat.messages):
            return len(full)
        until = self.attempt(chat.messages[: index + 1], chat.tools)
        return len(until) if until is not None and full.startswith(until) else None

    def _end(self, full: str, content_end: int, stop: int | None) -> int:
        """Through the end token that follows the content, or else through the end text that the template puts there."""
        token = self._end_token.match(full, content_end, len(full) if stop is None else stop)
        if token:
            return token.end()
        if stop is None:
            return content_end
        return content_end + len(full[content_end:stop].rstrip())

    def _closed(self, full: str, stop: int | None) -> int | None:
        """The content's end where only the turn's whole extent is known: before the end token it closes with."""
        if stop is None:
            return None
        inside = full[:stop].rstrip()
        closing = next((token for token in self._end_tokens if inside.endswith(token)), "")
        return len(inside) - len(closing)


def is_empty(message: Message) -> bool:
    return not message["content"].strip() and not message.get("tool_calls")


def turn_end(template: ChatTemplate) -> str:
    """The text that closes an assistant turn, such as `<|im_end|>`; empty if the template closes turns with nothing."""
    rendered = template.conversation(Chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]))
    turn = rendered.turns[0]
    return rendered.text[turn.content_end : turn.end].strip()
