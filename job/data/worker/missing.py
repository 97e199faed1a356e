"""What of a conversation is not in its text, because the template leaves it out or changes it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from job.data.worker.messages import REASONING, Message

THOUGHT = re.compile(r"</?(?:think|thinking|thought|reasoning)>|\[/?THINK\]")


def missing_of_answer(message: Message, shown: str) -> set[str]:
    """Kinds of what is not in an answer's turn: its reasoning, or a part of its text."""
    *thoughts, said = _parts(message)
    thoughts.append(message.get(REASONING[0], ""))
    reasoning = {"reasoning"} if any(thought.strip() not in shown for thought in thoughts) else set()
    return reasoning | ({"text"} if said.strip() not in shown else set())


def missing_messages(messages: list[Message], learned: Collection[int], full: str) -> Counter[str]:
    """How many messages, but for the learned answers, are not in the whole text with theirs, by role."""
    found: Counter[str] = Counter()
    after = 0
    for index, message in enumerate(messages):
        said = _parts(message)[-1].strip() if index not in learned else ""
        place = full.find(said, after)
        if place < 0 and said not in full:  # else it is before where a short one was found by chance
            found[f"role {message['role']}"] += 1
        after = max(after, place + len(said))
    return found


def _parts(message: Message) -> list[str]:
    """The thoughts within an answer, and last what is said; of others all."""
    content: str = message["content"]
    return THOUGHT.split(content) if message["role"] == "assistant" else [content]
