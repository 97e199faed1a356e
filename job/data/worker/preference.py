"""A row with a chosen and a rejected answer to one prompt.

The prompt is in a column of its own, as text or messages, in `conversations` or `instruction`; or the answers are whole
conversations, which say the same up to their last answers. These may be transcripts: turns after `Human:` and
`Assistant:`.
"""

from __future__ import annotations

import re
from typing import Any

from job.data.worker.examples import Columns, Pair, Preference, Row, chat, opened, question_and_answer
from job.data.worker.messages import Conversation, Message, RowFault, kind_of, listed, parsed, string

OPENINGS = ("prompt", "conversations", "instruction")  # columns with what comes before the answers
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
ANSWERING = ("assistant", "tool")  # what an answer may consist of


def preference(row: Row, columns: Columns) -> Preference:
    """The row as two conversations, or as two raw texts where prompt and answers are text."""
    if is_raw(row, columns):
        prompt = string(columns.need(row, "prompt"), "prompt")
        chosen, rejected = (Pair(prompt, string(columns.need(row, name), name)) for name in ("chosen", "rejected"))
        return Preference(chosen, rejected)
    opening = _opening(row, columns)
    chosen_talk, rejected_talk = (_talk(row, columns, name, opening) for name in ("chosen", "rejected"))
    first = _shared(chosen_talk.messages, rejected_talk.messages)
    return Preference(chat(chosen_talk, row, columns, first), chat(rejected_talk, row, columns, first))


def is_raw(row: Row, columns: Columns) -> bool:
    """Whether prompt and answers are text without turns, as in `prompt_completion`."""
    values = [columns.get(row, name) for name in ("prompt", "chosen", "rejected")]
    return all(isinstance(value, str) for value in values) and not any(map(_is_json, values))


def _is_json(text: str) -> bool:
    """Message lists in a .csv are JSON text."""
    return text.lstrip()[:2] in ("[{", "[ ")


def _opening(row: Row, columns: Columns) -> str:
    """The column that the prompt is in; empty where the answers are whole conversations."""
    found = [name for name in OPENINGS if columns.get(row, name) not in (None, "", [])]
    if len(found) > 1:
        raise RowFault(f"the prompt is in {' and in '.join(found)}; only one of them can be read")
    return found[0] if found else ""


def _talk(row: Row, columns: Columns, name: str, opening: str) -> Conversation:
    """The whole conversation that ends with the answer in the column `name`."""
    answer = columns.need(row, name)
    answer = parsed(answer, name) if isinstance(answer, str) and _is_json(answer) else answer
    talk = opened(columns.get(row, "system"))
    if isinstance(answer, str):
        if opening:
            _open(talk, row, columns, opening)
            talk.add_message({"role": "assistant", "content": answer}, name)
        else:
            _transcript(talk, answer, name)
        return talk
    if not isinstance(answer, dict | list):
        raise RowFault(f"{name} must be text or a list of messages, not {kind_of(answer)}")
    items = [answer] if isinstance(answer, dict) else answer
    whole = Conversation()
    for number, item in enumerate(items, 1):
        _add(whole, item, f"{name} message {number}")
    if not whole.messages:
        raise RowFault(f"{name} is an empty list")
    if whole.messages[0]["role"] in ANSWERING:
        _open(talk, row, columns, opening)
        if not talk.messages:
            raise RowFault(f"{name} begins with an answer, and there is no prompt")
    elif opening:
        _require_prompt(row, columns, opening, whole, name)
    for number, item in enumerate(items, 1):
        _add(talk, item, f"{name} message {number}")
    return talk


def _add(talk: Conversation, item: Any, where: str) -> None:
    """A message, or a turn of from/value."""
    if isinstance(item, dict) and "from" in item:
        talk.add_turn(item, where)
    else:
        talk.add_message(item, where)


def _open(talk: Conversation, row: Row, columns: Columns, opening: str) -> None:
    """Adds what comes before the answers."""
    if opening == "instruction":
        addition = columns.get(row, "input")
        parts = [string(columns.get(row, "instruction"), "instruction"), string(addition or "", "input")]
        question = columns.input_joint.join(part for part in parts if part.strip())
        if not question:
            raise RowFault("instruction and input are empty")
        talk.add_message(question_and_answer(question, "")[0], "instruction")
        return
    value = columns.get(row, opening) if opening else []
    if opening == "prompt" and isinstance(value, str) and not _is_json(value):
        talk.add_message({"role": "user", "content": value}, "prompt")
        return
    for number, item in enumerate(listed(value, opening), 1):
        _add(talk, item, f"{opening} message {number}")


def _require_prompt(row: Row, columns: Columns, opening: str, whole: Conversation, name: str) -> None:
    """Raises where a whole conversation does not begin with the prompt in the same row."""
    talk = Conversation()
    _open(talk, row, columns, opening)
    spoken = [message for message in whole.messages if message["role"] != "system"]
    if isinstance(columns.get(row, opening), str) and any(_same(talk.messages[0], other) for other in spoken):
        return
    if whole.messages[: len(talk.messages)] != talk.messages:
        raise RowFault(f"{name} is a whole conversation that does not begin with {opening}")


def _same(prompt: Message, other: Message) -> bool:
    return str(prompt["content"]).strip() == str(other["content"]).strip()


def _transcript(talk: Conversation, text: str, name: str) -> None:
    """Turns after `Human:` and `Assistant:`, each after an empty line."""
    before, *turns = SPEAKER.split(text)
    if before.strip() or not turns:
        expected = "a prompt in prompt, conversations or instruction, or turns after Human: and Assistant:"
        raise RowFault(f"{name} is text, and there is no {expected}")
    for speaker, said in zip(turns[::2], turns[1::2], strict=True):
        talk.messages.append({"role": ROLES[speaker], "content": said.strip()})


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both begin with; everything after them is the answer."""
    most = min(len(chosen), len(rejected))
    count = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if count == len(chosen) == len(rejected):  # the same answer; the caller counts these
        count = next((i for i in range(count, 0, -1) if chosen[i - 1]["role"] not in ANSWERING), 0)
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if count == len(messages):
            raise RowFault(f"{name} has no answer of its own: the other one goes on where it ends")
        other = next((i for i in range(count, len(messages)) if messages[i]["role"] not in ANSWERING), None)
        if other is not None:
            raise RowFault(
                f"chosen and rejected do not have the same prompt: they part before message {other + 1} of {name}, "
                f"which is of the role {messages[other]['role']}"
            )
    return count
