"""A row of any format as one of three shapes: a conversation, a raw prompt with its completion, or a document.

Pure Python on plain values; it runs in the worker processes. What a row gets wrong is a `RowFault`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
ALPACA_INPUT = "\n\n### Input:\n"


class RowFault(Exception):
    """Why a row cannot be used; the caller knows which row it is."""


@dataclass(frozen=True)
class Chat:
    """Messages of role and string content; assistant turns before `first_trained` are context only."""

    messages: list[Message]
    tools: list[Any] | None = None
    first_trained: int = 0


@dataclass(frozen=True)
class Pair:
    """Raw text without a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Document:
    text: str


Example = Chat | Pair | Document


@dataclass(frozen=True)
class Columns:
    """A source's renamed columns, and what joins an Alpaca instruction with its input."""

    names: dict[str, str]
    input_joint: str = "\n\n"

    def get(self, row: Row, name: str) -> Any:
        return row.get(self.names.get(name, name))

    def need(self, row: Row, name: str) -> Any:
        column = self.names.get(name, name)
        if column not in row:
            raise RowFault(f"column {column} is missing; the row has {', '.join(map(str, row)) or 'none'}")
        return row[column]


def shape(kind: str, row: Row, columns: Columns) -> Example:
    """The row as an example. Raises `RowFault`."""
    example = FORMATS[kind].example
    if example is None:
        raise ValueError(f"rows of format {kind} are rendered by the templates of their source")
    return example(row, columns)


def _messages(row: Row, columns: Columns) -> Chat:
    messages = [
        _message(item, f"message {i}") for i, item in enumerate(_list(columns.need(row, "messages"), "messages"), 1)
    ]
    return Chat(_with_system(messages, columns.get(row, "system")), _tools(columns.get(row, "tools")))


def _sharegpt(row: Row, columns: Columns) -> Chat:
    turns = _list(columns.need(row, "conversations"), "conversations")
    messages = [_turn(item, f"turn {i}") for i, item in enumerate(turns, 1)]
    return Chat(_with_system(messages, columns.get(row, "system")), _tools(columns.get(row, "tools")))


def _alpaca(row: Row, columns: Columns) -> Chat:
    instruction = _string(columns.need(row, "instruction"), "instruction")
    addition = columns.get(row, "input")
    addition = "" if addition is None else _string(addition, "input")
    question = columns.input_joint.join(part for part in (instruction, addition) if part.strip())
    if not question:
        raise RowFault("instruction and input are empty")
    return Chat(
        _with_system(
            question_and_answer(question, _string(columns.need(row, "output"), "output")), columns.get(row, "system")
        )
    )


def question_and_answer(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _prompt_completion(row: Row, columns: Columns) -> Chat | Pair:
    prompt, completion = columns.need(row, "prompt"), columns.need(row, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Pair(prompt, completion)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
        raise RowFault(f"prompt and completion must both be strings or both be message lists, not {kinds}")
    before = _with_system(
        [_message(item, f"prompt message {i}") for i, item in enumerate(prompt, 1)], columns.get(row, "system")
    )
    after = [_message(item, f"completion message {i}") for i, item in enumerate(completion, 1)]
    return Chat(before + after, None, len(before))


def _text(row: Row, columns: Columns) -> Document:
    return Document(_string(columns.need(row, "text"), "text"))


@dataclass(frozen=True)
class Format:
    """What rows of one format look like, and what becomes of them. A new format is a line in `FORMATS`."""

    required: tuple[str, ...]  # columns that a row must have
    optional: tuple[str, ...]  # columns that it may have
    example: Callable[[Row, Columns], Example] | None  # None where the source's own templates make it
    is_chat: bool = True  # whether a chat template puts it in words; a prompt that is text decides for itself

    @property
    def columns(self) -> tuple[str, ...]:
        return self.required + self.optional


FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), ("tools", "system"), _messages),
    "sharegpt": Format(("conversations",), ("tools", "system"), _sharegpt),
    "alpaca": Format(("instruction", "output"), ("input", "system"), _alpaca),
    "prompt_completion": Format(("prompt", "completion"), ("system",), _prompt_completion),
    "text": Format(("text",), (), _text, is_chat=False),
    "template": Format((), (), None),
}


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowFault(f"{name} must be text, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _parsed(value: Any, name: str) -> Any:
    """Lists in CSV and some Parquet files are JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise RowFault(f"{name} is text but not JSON") from None


def _list(value: Any, name: str) -> list[Any]:
    value = _parsed(value, name)
    if not isinstance(value, list):
        raise RowFault(f"{name} must be a list, not {_kind(value)}")
    return value


def _message(item: Any, where: str) -> Message:
    """One message in OpenAI's form; keys without a value are left out, as Parquet fills them with null."""
    if not isinstance(item, dict) or "role" not in item:
        raise RowFault(f"{where} must be an object with role and content")
    if item["role"] not in ROLES:
        raise RowFault(f"{where} has the unknown role {item['role']!r}; known are {', '.join(ROLES)}")
    message = {key: value for key, value in item.items() if value is not None}
    calls = _parsed(message.pop("tool_calls", None), f"{where}: tool_calls") or []
    if calls:
        message["tool_calls"] = [_call(call, where) for call in _list(calls, f"{where}: tool_calls")]
    message["content"] = _content(item.get("content"), where, bool(calls))
    return message


def _content(value: Any, where: str, calls_tools: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and calls_tools:
        return ""
    if not isinstance(value, list):
        raise RowFault(f"{where}: content must be text, not {_kind(value)}")
    return "".join(_part(part, where) for part in value)


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else _kind(part)
    if kind != "text":
        raise RowFault(f"{where}: content part of type {kind!r}; only text parts can be used")
    return _string(part.get("text"), f"{where}: the text of a content part")


def _call(call: Any, where: str) -> Message:
    """A tool call with its arguments as an object, which chat templates expect; data sets often hold JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault(f"{where}: a tool call needs a function with a name")
    arguments = _parsed(function.get("arguments", {}), f"{where}: arguments of {function['name']}")
    if not isinstance(arguments, dict):
        raise RowFault(f"{where}: arguments of {function['name']} must be an object, not {_kind(arguments)}")
    known = {"id": call["id"]} if call.get("id") else {}
    return known | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _turn(item: Any, where: str) -> Message:
    """One ShareGPT turn, with keys from/value or role/content."""
    if not isinstance(item, dict) or not ({"from", "value"} <= item.keys() or {"role", "content"} <= item.keys()):
        raise RowFault(f"{where} must be an object with from and value")
    speaker, value = (item["from"], item["value"]) if "from" in item else (item["role"], item["content"])
    if speaker not in SHAREGPT_ROLES:
        raise RowFault(f"{where} has the unknown speaker {speaker!r}; known are {', '.join(SHAREGPT_ROLES)}")
    content = _string(value, f"{where}: the value")
    if speaker != "function_call":
        return {"role": SHAREGPT_ROLES[speaker], "content": content}
    calls = _parsed(content, f"{where}: the function call")
    calls = [_call(call, where) for call in (calls if isinstance(calls, list) else [calls])]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _with_system(messages: list[Message], system: Any) -> list[Message]:
    """The messages headed by the row's system prompt, if it has one."""
    if system is None or system == "":
        return messages
    if messages and messages[0]["role"] == "system":
        raise RowFault("a system prompt is in the system column and in the first message")
    return [{"role": "system", "content": _string(system, "system")}, *messages]


def _tools(value: Any) -> list[Any] | None:
    """Tool definitions in OpenAI's form; None if there are none."""
    if value is None or value in ("", "[]"):
        return None
    return [_tool(tool) for tool in _list(value, "tools")] or None


def _tool(tool: Any) -> Row:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault("each tool must be an object with a name")
    return {"type": "function", "function": function}
