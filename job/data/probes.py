"""Made-up conversations through the job's chat template.

Their renderings show the template's form to those who must write it in another language, without running its Jinja
again. Every message holds a character that occurs nowhere else, so that what is around it can be distinguished.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from job.data.pool import Pool
from job.data.worker import wire
from job.data.worker.messages import Message
from job.data.worker.shape import ALPACA_INPUT

MARKS = range(0xE000, 0xF8FF)  # Unicode's private use area: characters without meaning
ROLES = {"s": "system", "u": "user", "a": "assistant"}
PLAIN = "{0} Aa \"<&>' {0}"  # shows it when a template changes letters or escapes marks
FORMS = ("u", "uau", "uauau", "su", "suau", "suauau")  # what every chat does, each up to the next answer
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold
TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "p", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class TemplateProbe:
    """A conversation and its text, None where the template fails on it.

    With a `prompt` the text ends where the next answer begins. `about` is "" for what every chat does, and otherwise
    names what some chats do besides.
    """

    messages: list[Message]
    prompt: bool
    text: str | None
    about: str = ""


@dataclass(frozen=True)
class _Asked:
    form: str
    about: str = ""
    content: str = PLAIN
    prompt: bool = True
    tools: tuple[Any, ...] = ()


ASKED = (
    *(_Asked(form) for form in FORMS),
    *(_Asked(form, "an answer that is to be continued", prompt=False) for form in ("ua", "uaua", "sua")),
    _Asked("uasu", "a system message after the first turn"),
    _Asked("uau", "white space at the ends of a message", " \n" + PLAIN + "\n "),
    _Asked("uau", "reasoning in an earlier answer", "<think>\n{0}\n</think>\n\n{0}"),
    _Asked("u", "an Alpaca input in a question", "{0}" + ALPACA_INPUT + "{0}"),
    _Asked("u", "tools", tools=(TOOL,)),
)


def ask_probes(pool: Pool, job: wire.Job) -> tuple[TemplateProbe, ...]:
    """The probes through the job's chat template, if it has one. Raises what a refused template raises."""
    if not job.chat_template:
        return ()
    marks = [mark for mark in map(chr, MARKS) if mark not in job.chat_template]
    conversations = [_conversation(asked, marks) for asked in ASKED]
    requests = tuple(
        [messages, list(asked.tools) or None, asked.prompt]
        for asked, messages in zip(ASKED, conversations, strict=True)
    )
    texts = pool.ask(wire.Request("renderings", job, conversations=requests)).renderings
    found = zip(ASKED, conversations, texts, strict=True)
    return tuple(TemplateProbe(messages, asked.prompt, _whole(text), asked.about) for asked, messages, text in found)


def _whole(text: str | None) -> str | None:
    return None if text is None or SURROGATE.search(text) else text


def _conversation(asked: _Asked, marks: list[str]) -> list[Message]:
    return [
        {"role": ROLES[role], "content": asked.content.format(mark)}
        for role, mark in zip(asked.form, marks, strict=False)
    ]
