"""A row of any format as one of three shapes: a conversation, a raw prompt with its completion, or a document.

Pure Python on plain values; it runs in the worker processes. What a row gets wrong is a `RowFault`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from job.data.worker.messages import Conversation, Message, RowFault, is_name, listed, names, string

Row = dict[str, Any]

ALPACA_INPUT = "\n\n### Input:\n"
TOOL = ("type", "function")
LABELS = ("label", "kto_tag")  # of KTO: whether the answer is a good one


@dataclass(frozen=True)
class Chat:
    """Messages of role and string content; assistant turns before `first_trained` are context only.

    `unlearned`, `wished`, `ignored`: as in `Conversation`.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    first_trained: int = 0
    unlearned: frozenset[int] = frozenset()
    wished: int = 0
    ignored: tuple[str, ...] = ()


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
        """The value of a column that a row may lack; a column that is named for something else is that alone."""
        taken = name not in self.names and name in self.names.values()
        return None if taken else row.get(self.names.get(name, name))

    def need(self, row: Row, name: str) -> Any:
        column = self.names.get(name, name)
        if column not in row:
            raise RowFault(f"column {column} is missing; the row has {names(row)}")
        return row[column]


def shape(kind: str, row: Row, columns: Columns) -> Example:
    """The row as an example. Raises `RowFault`."""
    example = FORMATS[kind].example
    if example is None:
        raise ValueError(f"rows of format {kind} are rendered by the templates of their source")
    require_good(kind, row, columns.names.values())
    return example(row, columns)


def require_good(kind: str, row: Row, data: Collection[str]) -> None:
    """Raises `RowFault` for a row that its label calls bad: it is not an example of what to say. `data`: columns that
    are read under these names.
    """
    if not FORMATS[kind].has_answers:
        return
    bad = ("false", "0", "0.0") if kind == "prompt_completion" else ("false",)  # 0 is false in TRL's rows
    for name in LABELS:
        if str(row.get(name)).lower() in bad and name not in data:
            raise RowFault(
                f"{name} is {row[name]!r:.40}: preference data marks so an answer that must not be learned; "
                "leave such rows out"
            )


def _messages(row: Row, columns: Columns) -> Chat:
    talk = _opened(columns.get(row, "system"))
    for number, item in enumerate(listed(columns.need(row, "messages"), "messages"), 1):
        talk.add_message(item, f"message {number}")
    return _chat(talk, row, columns)


def _sharegpt(row: Row, columns: Columns) -> Chat:
    talk = _opened(columns.get(row, "system"))
    for number, item in enumerate(listed(columns.need(row, "conversations"), "conversations"), 1):
        talk.add_turn(item, f"turn {number}")
    return _chat(talk, row, columns)


def _opened(system: Any) -> Conversation:
    """A conversation that begins with the row's system prompt, if it has one."""
    talk = Conversation()
    if system is not None and system != "":
        talk.messages.append({"role": "system", "content": string(system, "system")})
    return talk


def _chat(talk: Conversation, row: Row, columns: Columns, first_trained: int = 0) -> Chat:
    if [message["role"] for message in talk.messages[:2]] == ["system", "system"] and columns.get(row, "system"):
        raise RowFault("a system prompt is in the system column and in the first message")
    tools = _tools(columns.get(row, "tools"))
    older = _tools(row.get("functions"))  # of the time when a call was a function_call
    if tools and older and tools != older:
        raise RowFault("tools and functions are one thing, and differ here")
    return Chat(
        talk.messages, tools or older, first_trained, frozenset(talk.unlearned), talk.wished, tuple(talk.ignored)
    )


def _alpaca(row: Row, columns: Columns) -> Chat:
    instruction = string(columns.need(row, "instruction"), "instruction")
    addition = columns.get(row, "input")
    addition = "" if addition is None else string(addition, "input")
    question = columns.input_joint.join(part for part in (instruction, addition) if part.strip())
    if not question:
        raise RowFault("instruction and input are empty")
    answer = string(columns.need(row, "output"), "output")
    return Chat(_opened(columns.get(row, "system")).messages + question_and_answer(question, answer))


def question_and_answer(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _prompt_completion(row: Row, columns: Columns) -> Chat | Pair:
    prompt, completion = columns.need(row, "prompt"), columns.need(row, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Pair(prompt, completion)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
        raise RowFault(f"prompt and completion must both be strings or both be message lists, not {kinds}")
    talk = _opened(columns.get(row, "system"))
    for number, item in enumerate(prompt, 1):
        talk.add_message(item, f"prompt message {number}")
    first_trained = len(talk.messages)
    for number, item in enumerate(completion, 1):
        talk.add_message(item, f"completion message {number}")
    return _chat(talk, row, columns, first_trained)


def _text(row: Row, columns: Columns) -> Document:
    return Document(string(columns.need(row, "text"), "text"))


@dataclass(frozen=True)
class Format:
    """What rows of one format look like, and what becomes of them. A new format is a line in `FORMATS`."""

    required: tuple[str, ...]  # columns that a row must have
    optional: tuple[str, ...]  # columns that it may have
    example: Callable[[Row, Columns], Example] | None  # None where the source's own templates make it
    has_answers: bool = True  # which a label may call good or bad
    unnamed: tuple[str, ...] = ()  # columns that are read under their own names alone
    is_chat: bool = True  # whether a chat template puts it in words; a prompt that is text decides for itself

    @property
    def columns(self) -> tuple[str, ...]:
        return self.required + self.optional


FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), ("tools", "system"), _messages, unnamed=("functions",)),
    "sharegpt": Format(("conversations",), ("tools", "system"), _sharegpt, unnamed=("functions",)),
    "alpaca": Format(("instruction", "output"), ("input", "system"), _alpaca),
    "prompt_completion": Format(
        ("prompt", "completion"), ("system",), _prompt_completion, unnamed=("tools", "functions")
    ),
    "text": Format(("text",), (), _text, has_answers=False, is_chat=False),
    "template": Format((), (), None),
}


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
