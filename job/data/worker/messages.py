"""One message or turn of a row as chat templates expect it.

Pure Python on plain values. Each key is honoured, refused by its name (`RowFault`), or counted: what the template
might read stays in the message, and what nothing can read is named in `Conversation.ignored`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from job.data.worker.json_text import LaxError, strict

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
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
    "tool_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
CALLERS = ("function_call", "tool_call")  # speakers whose text is the JSON of a call

REASONING = ("reasoning_content", "reasoning", "thinking")  # one thing under the names that templates ask for
READ = ("role", "content", "tool_calls", "tool_call_id")
LEARNED_WHERE_TRUE = ("weight", "train", "training", "trainable", "loss", "loss_weight", "loss_mask", "learn")
LEARNED_WHERE_FALSE = ("masked",)
WEIGHTS = ("weight", "loss_weight")  # of these marks, those that may be a fraction
WHOLE = 1_000_000  # a weight of 1, in which fractions are counted
MARKS = (*LEARNED_WHERE_TRUE, *LEARNED_WHERE_FALSE)
MARK_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}  # in a .csv all is text
REFUSED = {
    "mask": "it does not say which value is learned; weight and train do",
    "train_detail": "parts of an answer cannot be chosen; weight and train choose whole ones",
    "refusal": "write a refusal that is to be learned as content",
    "audio": "only text is trained on",
    "image": "only text is trained on",
    "images": "only text is trained on",
    "video": "only text is trained on",
    "videos": "only text is trained on",
}
SHOWN_NAMES, SHOWN_CHARACTERS = 20, 60
TEXT_PARTS = ("text", "input_text", "output_text")


class RowFault(Exception):
    """Why a row cannot be used; the caller knows which row it is."""


def kind_of(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowFault(f"{name} must be text, not {kind_of(value)}")
    return value


def further_keys(message: Message) -> list[str]:
    """Those that a template may not know of; the reasoning of an answer is looked for by itself."""
    return [key for key in message if key not in READ and (key not in REASONING or message["role"] != "assistant")]


def names(found: Iterable[Any]) -> str:
    """Names of columns or keys for a message: rows may have a million, and long ones."""
    first = [str(name)[:SHOWN_CHARACTERS] for name in islice(found, SHOWN_NAMES + 1)]
    return ", ".join([*first[:SHOWN_NAMES], *(["…"] if len(first) > SHOWN_NAMES else [])]) or "none"


def is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def parsed(value: Any, name: str) -> Any:
    """Lists in CSV and some Parquet files are JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return strict(value)
    except LaxError as error:
        raise RowFault(f"{name}: {error}") from None
    except (ValueError, RecursionError):
        raise RowFault(f"{name} is text but not JSON") from None


def listed(value: Any, name: str) -> list[Any]:
    value = parsed(value, name)
    if not isinstance(value, list):
        raise RowFault(f"{name} must be a list, not {kind_of(value)}")
    return value


@dataclass
class Conversation:
    """Messages in the order they are added.

    `unlearned`: numbers of those marked not to be learned, of any role; `weights`: in millionths, of those to be
    learned in part. `wished`: how many are marked to be learned though they are not answers. `ignored`: names of keys,
    one for each time, that no template can see.
    """

    messages: list[Message] = field(default_factory=list)
    unlearned: set[int] = field(default_factory=set)
    weights: dict[int, int] = field(default_factory=dict)
    wished: int = 0
    ignored: list[str] = field(default_factory=list)

    def add_message(self, item: Any, where: str) -> None:
        """One message in OpenAI's form; keys without a value are left out, as Parquet fills them with null."""
        if not isinstance(item, dict) or item.get("role") is None:
            raise RowFault(f"{where} must be an object with role and content")
        if item["role"] not in ROLES:
            raise RowFault(f"{where} has the unknown role {item['role']!r:.80}; known are {', '.join(ROLES)}")
        self._add(item | {"role": "tool"} if item["role"] == "function" else item, where, "content")

    def add_turn(self, item: Any, where: str) -> None:
        """One ShareGPT turn, with keys from/value or role/content."""
        given = {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else {}
        said, named = {"from", "value"} & given.keys(), {"role", "content"} & given.keys()
        if said and named:
            raise RowFault(f"{where} has both from/value and role/content")
        who, what = ("from", "value") if said else ("role", "content")
        if who not in given:
            raise RowFault(f"{where} must be an object with from and value")
        speaker, content = given.pop(who), given.pop(what, None)
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            raise RowFault(f"{where} has the unknown speaker {speaker!r:.80}; known are {', '.join(SHAREGPT_ROLES)}")
        if speaker in CALLERS:
            if given.get("tool_calls"):
                raise RowFault(f"{where} has both tool_calls and, as its value, a function call")
            calls = parsed(string(content, f"{where}: the value"), f"{where}: the function call")
            if calls == []:
                raise RowFault(f"{where}: the function call is an empty list")
            given["tool_calls"], content = calls if isinstance(calls, list) else [calls], ""
        self._add(given | {"role": SHAREGPT_ROLES[speaker], "content": content}, where, "the value")

    def _add(self, item: Message, where: str, text: str) -> None:
        message = {key: value for key, value in item.items() if value is not None}
        marked = _mark(message, where)
        is_answer = message["role"] == "assistant"
        if marked == 0:
            self.unlearned.add(len(self.messages))
        elif marked and (millionths := round(marked * WHOLE)) < WHOLE:
            self.weights[len(self.messages)] = millionths
        self.wished += bool(marked) and not is_answer
        for key in REFUSED:
            if message.pop(key, None):
                raise RowFault(f"{where}: the key {key} cannot be used: {REFUSED[key]}")
        calls = self._calls(message, where)
        if calls and not is_answer:
            raise RowFault(f"{where}: only answers call tools, not the role {message['role']}")
        reasoning = _reasoning(message, where) if is_answer else ""
        content = self._content(item.get("content"), where, text, bool(calls or reasoning))
        message["content"] = content
        if calls:
            message["tool_calls"] = calls
        if reasoning:
            message |= dict.fromkeys(REASONING, reasoning)
        self.messages.append(message)

    def _calls(self, message: Message, where: str) -> list[Message]:
        """The tool calls, taken out of the message; the older `function_call` is the only one there is."""
        calls = listed(message.pop("tool_calls", None) or [], f"{where}: tool_calls")
        older = parsed(message.pop("function_call", None) or None, f"{where}: function_call")
        if older and calls:
            raise RowFault(f"{where} has both tool_calls and function_call")
        return [self._call(call, where) for call in ([older] if older else calls)]

    def _call(self, call: Any, where: str) -> Message:
        """A tool call with its arguments as an object, which chat templates expect; data sets often hold JSON text."""
        flat = isinstance(call, dict) and not isinstance(call.get("function"), dict)
        function = call if flat else call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not is_name(function.get("name")):
            raise RowFault(f"{where}: a tool call needs a function with a name")
        if call.get("type") not in (None, "function"):
            raise RowFault(f"{where}: a tool call of type {call['type']!r:.80}; only functions can be used")
        name = f"{where}: arguments of {function['name']:.80}"
        given = [function[key] for key in ("arguments", "parameters") if function.get(key) not in (None, "")]
        if len(given) > 1:
            raise RowFault(f"{name} are given twice, as arguments and as parameters")
        arguments = parsed(given[0], name) if given else None
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, dict):
            raise RowFault(f"{name} must be an object, not {kind_of(arguments)}")
        inner = ("name", "arguments", "parameters")
        self._ignore(call, ("id", "type", *(inner if flat else ("function",))), "tool_calls[]")
        self._ignore({} if flat else function, inner, "tool_calls[].function")
        known = {"id": call["id"]} if call.get("id") else {}
        return known | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}

    def _content(self, value: Any, where: str, name: str, may_be_absent: bool) -> str:
        if isinstance(value, str):
            return value
        if value is None and may_be_absent:
            return ""
        if not isinstance(value, list):
            raise RowFault(f"{where}: {name} must be text, not {kind_of(value)}")
        return "".join(self._part(part, where) for part in value)

    def _part(self, part: Any, where: str) -> str:
        """The text of a content part, which some writers call its value."""
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        if kind not in TEXT_PARTS:
            raise RowFault(f"{where}: content part of type {kind!r:.80}; only text parts can be used")
        given = [part[key] for key in ("text", "value") if part.get(key) is not None]
        if len(given) != 1:
            raise RowFault(f"{where}: a text part needs text, and has {names(part)}")
        self._ignore(part, ("type", "text", "value"), "content[]")
        return string(given[0], f"{where}: the text of a content part")

    def _ignore(self, item: Message, known: tuple[str, ...], where: str) -> None:
        self.ignored += [f"{where}.{key}" for key, value in item.items() if key not in known and value is not None]


def _mark(message: Message, where: str) -> float | None:
    """How much of it is learned, 0 to 1, as the message says, taken out of it; None where it says nothing."""
    said: dict[str, float] = {}
    for key in MARKS:
        if key in message:
            value = message.pop(key)
            fits = key in WEIGHTS and isinstance(value, float) and 1 / WHOLE <= value <= 1
            if not (fits or _is_mark(value)):
                wanted = f"0, or from {1 / WHOLE:f} to 1" if key in WEIGHTS else "0 or 1, false or true"
                raise RowFault(f"{where}: {key} must be {wanted}, not {value!r:.40}")
            said[key] = float(value)
    return _verdict(said, where)


def row_mark(row: Message, data: Collection[str]) -> tuple[float | None, list[str]]:
    """Whether the row as a whole is learned (1) or not (0), None where it does not say; and its marks of other values.

    These may be something else: a loss that somebody measured, a weight in kilograms. `data`: columns that are read
    under these names. Raises `RowFault` for marks that contradict each other, and for lists.
    """
    said: dict[str, float] = {}
    others = []
    for key in MARKS:
        value = row.get(key) if key not in data else None
        if isinstance(value, str):
            value = MARK_WORDS.get(value.strip().lower(), value.strip())
        if isinstance(value, list | dict) and value:
            raise RowFault(
                f"the row's {key} is a {kind_of(value)}; weight or train in each message says what is learned"
            )
        if isinstance(value, bool | int | float) and _is_mark(value):
            said[key] = float(value)
        elif value is not None and value not in ("", [], {}):
            others.append(key)
    return _verdict(said, "the row"), others


def _is_mark(value: Any) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)


def _verdict(said: dict[str, float], where: str) -> float | None:
    """What the marks of one thing say together: beside a fraction, others say no more than that it is learned."""
    learned = {key: 1 - value if key in LEARNED_WHERE_FALSE else value for key, value in said.items()}
    known = set(learned.values())
    if (0 in known and len(known) > 1) or len(known - {1}) > 1:
        raise RowFault(f"{where}: {' and '.join(learned)} contradict each other")
    return min(known, default=None)


def _reasoning(message: Message, where: str) -> str:
    """What the message was thought over with, taken out of it."""
    texts = {string(message.pop(key), f"{where}: {key}") for key in REASONING if key in message}
    if len(texts - {""}) > 1:
        raise RowFault(f"{where}: {', '.join(REASONING)} are one thing, and differ here")
    return "".join(texts)
