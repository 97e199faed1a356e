"""What a row becomes before a template sees it, and how its messages are put together.

Pure Python on plain values; it runs in the worker processes. What a row gets wrong is a `RowFault`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from job.data.worker.messages import Conversation, Message, RowFault, is_name, listed, names, string

Row = dict[str, Any]

TOOL = ("type", "function")


@dataclass(frozen=True)
class Chat:
    """Messages of role and string content; assistant turns before `first_trained` are context only.

    `unlearned`, `wished`, `ignored`, `weights`: as in `Conversation`.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    first_trained: int = 0
    unlearned: frozenset[int] = frozenset()
    wished: int = 0
    ignored: tuple[str, ...] = ()
    weights: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Raw text without a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Document:
    text: str


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, each with it."""

    chosen: Chat | Pair
    rejected: Chat | Pair


@dataclass(frozen=True)
class Labelled:
    """An answer with its prompt, and whether it is a good one."""

    answer: Chat | Pair
    desirable: bool


Example = Chat | Pair | Document | Preference | Labelled


@dataclass(frozen=True)
class Columns:
    """A source's renamed columns, and what joins an Alpaca instruction with its input."""

    names: dict[str, str]
    input_joint: str = "\n\n"

    def get(self, row: Row, name: str) -> Any:
        """The value of a column that a row may lack; a column that is named for something else is that alone."""
        taken = name not in self.names and name in self.names.values()
        return None if taken else row.get(self.names.get(name, name))

    def need(self, row: Row, name: str) -> Any:
        column = self.names.get(name, name)
        if column not in row:
            raise RowFault(f"column {column} is missing; the row has {names(row)}")
        return row[column]


def opened(system: Any) -> Conversation:
    """A conversation that begins with the row's system prompt, if it has one."""
    talk = Conversation()
    if system is not None and system != "":
        talk.messages.append({"role": "system", "content": string(system, "system")})
    return talk


def chat(talk: Conversation, row: Row, columns: Columns, first_trained: int = 0) -> Chat:
    if [message["role"] for message in talk.messages[:2]] == ["system", "system"] and columns.get(row, "system"):
        raise RowFault("a system prompt is in the system column and in the first message")
    tools = _tools(columns.get(row, "tools"))
    older = _tools(row.get("functions"))  # of the time when a call was a function_call
    if tools and older and tools != older:
        raise RowFault("tools and functions are one thing, and differ here")
    return Chat(
        talk.messages,
        tools or older,
        first_trained,
        frozenset(talk.unlearned),
        talk.wished,
        tuple(talk.ignored),
        talk.weights,
    )


def question_and_answer(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _tools(value: Any) -> list[Any] | None:
    """Tool definitions in OpenAI's form; None if there are none."""
    if value is None or value in ("", "[]"):
        return None
    return [_tool(tool, number) for number, tool in enumerate(listed(value, "tools"), 1)] or None


def _tool(tool: Any, number: int) -> Row:
    """Further keys beside the function (`strict`) stay for the template to read, as at inference."""
    if not isinstance(tool, dict):
        raise RowFault(f"tool {number}: each tool must be an object with a name")
    if tool.get("type") not in (None, "function"):
        raise RowFault(f"tool {number} is of type {tool['type']!r:.80}; only functions can be used")
    further = {key: value for key, value in tool.items() if key not in TOOL}
    function = tool.get("function")
    if function is None:  # the flat form
        function, further = further, {}
    if not isinstance(function, dict) or not is_name(function.get("name")):
        raise RowFault(f"tool {number}: each tool must be an object with a name")
    return {"type": "function", "function": function, **further}
