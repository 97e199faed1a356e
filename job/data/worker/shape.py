"""A row of any format as one of five shapes: a conversation, a raw prompt with its completion, a document, two answers
to one prompt, or an answer that is called good or bad.

Pure Python on plain values; it runs in the worker processes. What a row gets wrong is a `RowFault`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from job.data.worker.examples import (
    TOOL,
    Chat,
    Columns,
    Document,
    Example,
    Labelled,
    Pair,
    Preference,
    Row,
    chat,
    opened,
    question_and_answer,
)
from job.data.worker.messages import MARK_WORDS, WHOLE, RowFault, kind_of, listed, string
from job.data.worker.preference import ANSWERING, OPENINGS, is_raw, preference

__all__ = [
    "ALPACA_INPUT", "FORMATS", "LABELS", "TOOL", "Chat", "Columns", "Document", "Example", "Format",
    "Labelled", "Pair", "Preference", "Row", "is_chat", "question_and_answer", "require_good", "shape",
]  # fmt: skip

ALPACA_INPUT = "\n\n### Input:\n"
LABELS = ("label", "kto_tag")  # of KTO: whether the answer is a good one


def shape(kind: str, row: Row, columns: Columns) -> Example:
    """The row as an example. Raises `RowFault`."""
    example = FORMATS[kind].example
    if example is None:
        raise ValueError(f"rows of format {kind} are rendered by the templates of their source")
    require_good(kind, row, columns.names.values())
    found = example(row, columns)
    if not FORMATS[kind].weighs:
        _require_whole(found)
    return found


def _require_whole(example: Example) -> None:
    """Raises `RowFault` for a message that is to be learned in part."""
    match example:
        case Preference(chosen, rejected):
            _require_whole(chosen)
            _require_whole(rejected)
        case Labelled(answer):
            _require_whole(answer)
        case Chat(weights=weights) if weights:
            number, millionths = next(iter(weights.items()))
            raise RowFault(
                f"message {number + 1}: a weight of {millionths / WHOLE:g} is for training.method sft; answers that "
                "are compared or rewarded count whole: write 0 or 1"
            )


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
    talk = opened(columns.get(row, "system"))
    for number, item in enumerate(listed(columns.need(row, "messages"), "messages"), 1):
        talk.add_message(item, f"message {number}")
    return chat(talk, row, columns)


def _sharegpt(row: Row, columns: Columns) -> Chat:
    talk = opened(columns.get(row, "system"))
    for number, item in enumerate(listed(columns.need(row, "conversations"), "conversations"), 1):
        talk.add_turn(item, f"turn {number}")
    return chat(talk, row, columns)


def _alpaca(row: Row, columns: Columns) -> Chat:
    instruction = string(columns.need(row, "instruction"), "instruction")
    addition = columns.get(row, "input")
    addition = "" if addition is None else string(addition, "input")
    question = columns.input_joint.join(part for part in (instruction, addition) if part.strip())
    if not question:
        raise RowFault("instruction and input are empty")
    answer = string(columns.need(row, "output"), "output")
    return Chat(opened(columns.get(row, "system")).messages + question_and_answer(question, answer))


def _prompt_completion(row: Row, columns: Columns) -> Chat | Pair:
    prompt, completion = columns.need(row, "prompt"), columns.need(row, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Pair(prompt, completion)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
        raise RowFault(f"prompt and completion must both be strings or both be message lists, not {kinds}")
    talk = opened(columns.get(row, "system"))
    for number, item in enumerate(prompt, 1):
        talk.add_message(item, f"prompt message {number}")
    first_trained = len(talk.messages)
    for number, item in enumerate(completion, 1):
        talk.add_message(item, f"completion message {number}")
    return chat(talk, row, columns, first_trained)


def _prompt_only(row: Row, columns: Columns) -> Chat:
    """A prompt and what an answer to it is compared with, as if that were the answer."""
    prompt = columns.need(row, "prompt")
    reference = string(columns.need(row, "reference"), "reference")
    talk = opened(columns.get(row, "system"))
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else listed(prompt, "prompt")
    for number, item in enumerate(turns, 1):
        talk.add_message(item, f"prompt message {number}")
    if talk.messages[-1]["role"] == "assistant":
        raise RowFault("the prompt ends with an answer")
    first_trained = len(talk.messages)
    talk.add_message({"role": "assistant", "content": reference}, "reference")
    return chat(talk, row, columns, first_trained)


def _labelled(row: Row, columns: Columns) -> Labelled:
    """A conversation's last answer, or the answer that the row has, and its label."""
    label = columns.need(row, "label")
    desirable = MARK_WORDS.get(label.strip().lower()) if isinstance(label, str) else label
    if not isinstance(desirable, bool | int | float) or desirable not in (0, 1):
        raise RowFault(f"label must be true or false, 1 or 0, not {label!r:.40} ({kind_of(label)})")
    found = [name for name in ANSWERED if all(columns.get(row, column) is not None for column in ANSWERED[name])]
    if len(found) != 1:
        forms = " or ".join(" and ".join(names) for names in ANSWERED.values())
        raise RowFault(f"the answer must be in {forms}; it is in {', '.join(found) or 'none of them'}")
    answer = ANSWERED_BY[found[0]](row, columns)
    if isinstance(answer, Chat):
        answer = replace(answer, first_trained=_last_answer(answer))
    return Labelled(answer, bool(desirable))


def _last_answer(talk: Chat) -> int:
    """Where it begins: after the last message that is neither an answer nor what a tool says."""
    roles = [message["role"] in ANSWERING for message in talk.messages]
    return max((number for number, is_answer in enumerate(roles, 1) if not is_answer), default=0)


def _text(row: Row, columns: Columns) -> Document:
    return Document(string(columns.need(row, "text"), "text"))


# Of format kto: the columns of each form that its rows may have.
ANSWERED = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
}
ANSWERED_BY: dict[str, Callable[[Row, Columns], Chat | Pair]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}


@dataclass(frozen=True)
class Format:
    """What rows of one format look like, and what becomes of them. A new format is a line in `FORMATS`."""

    required: tuple[str, ...]  # columns that a row must have
    optional: tuple[str, ...]  # columns that it may have
    example: Callable[[Row, Columns], Example] | None  # None where the source's own templates make it
    has_answers: bool = True  # which a label may call good or bad
    unnamed: tuple[str, ...] = ()  # columns that are read under their own names alone
    weighs: bool = True  # whether an answer may be learned in part
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
    "preference": Format(
        ("chosen", "rejected"),
        (*OPENINGS, "input", "system", "tools"),
        preference,
        unnamed=("functions",),
        weighs=False,
    ),
    "prompt_only": Format(
        ("prompt", "reference"), ("system", "tools"), _prompt_only, unnamed=("functions",), weighs=False
    ),
    "kto": Format(
        ("label",),
        (*(name for names in ANSWERED.values() for name in names), "input", "system", "tools"),
        _labelled,
        has_answers=False,
        unnamed=("functions",),
        weighs=False,
    ),
}


def is_chat(kind: str, row: Row, columns: Columns) -> bool:
    """Whether rows like `row` are conversations, which a chat template puts in words."""
    if kind in ("prompt_completion", "kto"):
        return not isinstance(columns.get(row, "prompt"), str) or columns.get(row, "completion") is None
    return not is_raw(row, columns) if kind == "preference" else FORMATS[kind].is_chat
