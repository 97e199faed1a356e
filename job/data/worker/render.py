"""A conversation as text, with the spans of characters that are learned.

Spans are never found by searching for markers. An assistant turn starts where the rendering of the messages before
it plus a generation prompt ends. It ends where its content ends, found by rendering the conversation again with the
turn replaced by one character that occurs nowhere in it, plus the end marker that the template puts after it.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from job.data.worker.messages import REASONING, Message, RowFault, further_keys
from job.data.worker.missing import THOUGHT, missing_messages, missing_of_answer
from job.data.worker.rendered import Rendered, Turn
from job.data.worker.sandbox import TemplateFailedError, render
from job.data.worker.shape import TOOL, Chat

PRIVATE_USE = range(0xE000, 0xF8FF)  # Unicode's private use area: characters without meaning
FEW_ANSWERS = 32  # up to here each answer is looked for by itself, which takes three renderings of what is before it
MAX_KEYS = 16  # of a row, beyond those that are known, each is tried by itself
LONG_MESSAGES = 200  # from here on much time is more likely the conversation's than a hostile template's
LONG_SECONDS = 5.0  # of the processor, for all renderings of a long conversation; less than a worker's request gets


class ChatTemplate:
    """A chat template with its variables (`bos_token`, …).

    `end_tokens` are the special tokens of the vocabulary that may close a turn.
    """

    def __init__(
        self, text: str, variables: dict[str, str], end_tokens: Collection[str], long_seconds: float = LONG_SECONDS
    ) -> None:
        self._long_seconds = long_seconds
        self._text = text
        self._variables = variables
        self._began = time.process_time()
        self._end_tokens = tuple(sorted(end_tokens, key=len, reverse=True))
        self._end_token = re.compile(r"\s*(?:" + ("|".join(map(re.escape, self._end_tokens)) or "(?!)") + ")")

    def render(self, messages: list[Message], tools: list[Any] | None = None, prompt: bool = False) -> str:
        """What `apply_chat_template(messages, tools, add_generation_prompt=prompt, tokenize=False)` gives."""
        if len(messages) > LONG_MESSAGES and time.process_time() - self._began > self._long_seconds:
            raise RowFault(
                f"its {len(messages)} messages and more take the chat template more than {self._long_seconds:g} "
                "seconds; split the conversation"
            )
        chat = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        return render(self._text, self._variables | chat)

    def conversation(self, chat: Chat) -> Rendered:
        """The rendered conversation and its learned turns; turns with an empty answer are not learned.

        Raises `RowFault` where the template drops or hides a turn, and what `sandbox.render` raises.
        """
        self._began = time.process_time()
        full = self.render(chat.messages, chat.tools)
        self._require_tool_calls(chat, full)
        answers = [i for i, m in enumerate(chat.messages) if m["role"] == "assistant" and i >= chat.first_trained]
        learned = [i for i in answers if i not in chat.unlearned and not is_empty(chat.messages[i])]
        turns = self._turns(chat, learned, full)
        remarks = Counter({f"key {key}": chat.ignored.count(key) for key in set(chat.ignored)})
        remarks += self._unread_keys(chat, full)
        remarks["wished"] = chat.wished
        if learned:  # else the row is left out, and named
            remarks["empty"] = sum(i not in chat.unlearned for i in answers) - len(learned)
        remarks["tools"] = int(chat.tools is not None and self.render(chat.messages) == full)
        remarks += Counter() if remarks["tools"] else self._unread_tool_keys(chat, full)
        remarks += missing_messages(chat.messages, learned, full)
        remarks["asked"] = sum(not turn.asked for turn in turns)
        for index, turn in zip(learned, turns, strict=True):
            remarks.update(missing_of_answer(chat.messages[index], full[turn.start : turn.end]))
        return Rendered(full, turns, tuple(learned), +remarks)

    def hidden(self, chat: Chat, full: str) -> list[tuple[int, int]]:
        """Spans of what is marked not to be learned, where all else is. Raises as `marked`."""
        return list(self.marked(chat, chat.unlearned, full).values())

    def marked(self, chat: Chat, numbers: Collection[int], full: str) -> dict[int, tuple[int, int]]:
        """Spans of these messages where all roles are learned: whole answers, and others' contents; none of empty ones.

        Raises `RowFault` where the template hides one.
        """
        spans = {}
        for index in sorted(numbers):
            message = chat.messages[index]
            if message["role"] == "assistant" and not is_empty(message):
                turn = self._turn(chat, index, full)
                spans[index] = (turn.start, turn.end)
            elif message["content"].strip():
                start, end = self._around(chat, index, full)
                if start is None or end is None:
                    how = "marked not to be learned" if index in chat.unlearned else "marked to be learned in part"
                    raise RowFault(f"the chat template hides message {index + 1}, which is {how}")
                spans[index] = (start, end)
        return spans

    def _unread_keys(self, chat: Chat, full: str) -> Counter[str]:
        """Keys of messages without which the text is the same, with the number of messages that have them."""
        further = Counter(key for message in chat.messages for key in further_keys(message))

        def unread(keys: Collection[str]) -> bool:
            without = [
                {key: m[key] for key in m if key not in keys or key not in further_keys(m)} for m in chat.messages
            ]
            return self.attempt(without, chat.tools) == full

        if not further:
            return further
        ignored = further if unread(further) else [key for key in list(further)[:MAX_KEYS] if unread([key])]
        return Counter({f"key {key}": further[key] for key in ignored})

    def _unread_tool_keys(self, chat: Chat, full: str) -> Counter[str]:
        """The same for keys of tools beside their function."""
        tools = chat.tools or []
        further = Counter(f"key tools[].{key}" for tool in tools for key in tool if key not in TOOL)
        plain = [{key: value for key, value in tool.items() if key in TOOL} for tool in tools]
        return further if further and self.attempt(chat.messages, plain) == full else Counter()

    def _require_tool_calls(self, chat: Chat, full: str) -> None:
        if not any("tool_calls" in message for message in chat.messages):
            return
        without = [{key: value for key, value in m.items() if key != "tool_calls"} for m in chat.messages]
        if self.attempt(without, chat.tools) == full:
            raise RowFault(
                "the chat template leaves tool calls out, so they cannot be learned; chat_template qwen renders them"
            )

    def attempt(self, messages: list[Message], tools: list[Any] | None, prompt: bool = False) -> str | None:
        """As `render`; None where the template fails on a conversation that we made up, say without a user turn."""
        try:
            return self.render(messages, tools, prompt) if messages or prompt else ""
        except TemplateFailedError:
            return None

    def _turns(self, chat: Chat, learned: Sequence[int], full: str) -> tuple[Turn, ...]:
        """The turns of the given answers; of many, most are found in two renderings and by comparison with others."""
        places = self._places(chat, learned, full) if len(learned) > FEW_ANSWERS else {}
        known: dict[int, Turn] = {}
        for kind in {_kind(chat, index) for index in places}:
            known |= self._alike(chat, [index for index in places if _kind(chat, index) == kind], places, full)
        return tuple(known.get(index) or self._turn(chat, index, full) for index in learned)

    def _places(self, chat: Chat, learned: Sequence[int], full: str) -> dict[int, tuple[int, int]]:
        """Where each answer's content begins and ends, from one rendering with a mark in place of each.

        What is between the marks must be the full text's, piece by piece; otherwise nothing is found. The first and
        the last message are left to be looked for by themselves.
        """
        inner = [i for i in learned if 0 < i < len(chat.messages) - 1]
        mark = next(c for c in map(chr, PRIVATE_USE) if c not in full)
        messages = list(chat.messages)
        for index in inner:
            messages[index] = {"role": "assistant", "content": f"{mark}{index}{mark}"}
        first, *pairs = re.split(f"{mark}(\\d+){mark}", self.attempt(messages, chat.tools) or "")
        if [int(number) for number in pairs[::2]] != inner or not full.startswith(first):
            return {}
        places, at = {}, len(first)
        for index, after in zip(inner, pairs[1::2], strict=True):
            end = _end_before(after, full, at, chat.messages[index])
            if end < 0:
                return {}
            places[index] = at, end
            at = end + len(after)
        return places if at == len(full) else {}

    def _alike(
        self, chat: Chat, alike: Sequence[int], places: dict[int, tuple[int, int]], full: str
    ) -> dict[int, Turn]:
        """Turns of answers to messages of one role: what is around their contents is that of a few of them."""
        around = set()
        for index in {alike[0], alike[len(alike) // 2], alike[-1]}:
            turn, (start, end) = self._turn(chat, index, full), places[index]
            if turn.start > start or turn.content_end != end:
                return {}
            around.add((full[turn.start : start], full[end : turn.end], turn.asked))
        if len(around) > 1:
            return {}
        ((opening, closing, asked),) = around
        found = {
            index: Turn(start - len(opening), end, end + len(closing), asked)
            for index, (start, end) in ((index, places[index]) for index in alike)
        }
        return {
            index: turn
            for index, turn in found.items()
            if turn.start < turn.content_end
            and full.startswith(opening, turn.start)
            and full.startswith(closing, turn.content_end)
            # What a template rewrites was found by what follows it, which must not be in it.
            and (_is_plain(message := chat.messages[index]) or (closing and closing not in _texts(message)))
        }

    def _turn(self, chat: Chat, index: int, full: str) -> Turn:
        head, tail = self._around(chat, index, full)
        prompt = self.attempt(chat.messages[:index], chat.tools, prompt=True)
        follows = prompt is not None and full.startswith(prompt)
        start = len(prompt) if prompt is not None and follows else head
        stop = self._stop(chat, index, full)
        content_end = tail if tail is not None else self._closed(full, stop)
        if start is None or content_end is None or not start < content_end <= (stop or len(full)):
            raise RowFault(self._why_hidden(chat.messages[index], index + 1, full))
        return Turn(start, content_end, self._end(full, content_end, stop), follows or not index or prompt is None)

    def _why_hidden(self, message: Message, number: int, full: str) -> str:
        thought = message.get(REASONING[0], "").strip()
        if thought and thought not in full and not message["content"].strip() and not message.get("tool_calls"):
            return (
                f"the answer in message {number} is reasoning alone, which the chat template leaves out: nothing of it "
                "can be learned; write it as content, or choose a template that shows reasoning"
            )
        return f"the chat template hides where the answer in message {number} begins or ends"

    def _around(self, chat: Chat, index: int, full: str) -> tuple[int | None, int | None]:
        """Lengths of the text before and up to the end of a turn's content, as far as they do not depend on it."""
        mark = next(c for c in map(chr, PRIVATE_USE) if c not in full)
        marked = {"role": chat.messages[index]["role"], "content": mark}
        changed = [*chat.messages[:index], marked, *chat.messages[index + 1 :]]
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
    return not message["content"].strip() and not message.get("tool_calls") and not message.get(REASONING[0])


def _is_plain(message: Message) -> bool:
    """Whether a template most likely writes nothing of it but its content, as it is."""
    return message.keys() == {"role", "content"} and not THOUGHT.search(message["content"])


def _kind(chat: Chat, index: int) -> tuple[str, bool]:
    return chat.messages[index - 1]["role"], _is_plain(chat.messages[index])


def _end_before(after: str, full: str, at: int, message: Message) -> int:
    """Where the content that begins at `at` ends and `after` follows; -1 if nowhere."""
    if not _is_plain(message):
        return full.find(after, at)
    content = message["content"]
    forms = (content, content.strip(), content.rstrip(), content.lstrip())
    ends = (at + len(text) for text in forms if full.startswith(text, at))
    return next((end for end in ends if full.startswith(after, end)), -1)


def _texts(message: Message) -> str:
    return json.dumps(message, ensure_ascii=False) + str(message["content"])
