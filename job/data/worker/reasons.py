"""Why nothing is learned from a row."""

from __future__ import annotations

from collections.abc import Iterable

from job.data.worker.render import is_empty
from job.data.worker.shape import Chat, Document, Example, Labelled, Pair, Preference
from job.data.worker.tokenise import Sequence
from job.data.worker.wire import BEYOND, EMPTY, EQUAL, EQUAL_WITHIN, MARKED


def why_unlearned(example: Example, parts: list[tuple[Sequence, ...]]) -> str:
    """`parts`: what the row became, each a sequence or a pair of them."""
    if isinstance(example, Labelled):
        return _reason(example.answer, [sequence for (sequence,) in parts])
    if not isinstance(example, Preference):
        return _reason(example, [sequence for (sequence,) in parts])
    if not parts:
        return EMPTY
    for answer, sequence in zip((example.chosen, example.rejected), *parts, strict=True):
        if not sequence.trained_tokens:
            return _reason(answer, [sequence])
    return EQUAL if example.chosen == example.rejected else EQUAL_WITHIN


def teaches(part: tuple[Sequence, ...]) -> bool:
    """Whether there is anything to learn in a sequence, or in a pair: two answers, which differ."""
    return all(sequence.trained_tokens for sequence in part) and (
        len(part) < 2 or part[0].input_ids != part[1].input_ids or part[0].labels != part[1].labels
    )


def differ_in_space_alone(example: Example) -> bool:
    """Whether two answers have the same characters but for white space."""
    return isinstance(example, Preference) and _characters(example.chosen) == _characters(example.rejected)


def _characters(answer: Chat | Pair) -> str:
    whole = [answer.completion] if isinstance(answer, Pair) else [text for m in answer.messages for text in m.values()]
    return "".join("".join(map(str, whole)).split())


def _reason(example: Chat | Pair | Document, sequences: Iterable[Sequence]) -> str:
    if isinstance(example, Chat) and _all_marked(example):
        return MARKED
    if _is_unanswered(example):
        return EMPTY
    if any(sequence.truncated for sequence in sequences):
        return BEYOND
    if isinstance(example, Chat) and all(message["role"] != "assistant" for message in example.messages):
        return "no assistant turn"
    return "nothing to learn in it"


def _is_unanswered(example: Chat | Pair | Document) -> bool:
    """Whether there are answers, and all that would be learned are empty."""
    if isinstance(example, Pair):
        return not example.completion.strip()
    if isinstance(example, Document):
        return False
    answers = _answers(example) - set(range(example.first_trained)) - example.unlearned
    return bool(answers) and all(is_empty(example.messages[index]) for index in answers)


def _answers(chat: Chat) -> set[int]:
    return {i for i, message in enumerate(chat.messages) if message["role"] == "assistant"}


def _all_marked(chat: Chat) -> bool:
    """Whether each answer that would be learned is marked not to be, and there is one."""
    answers = _answers(chat)
    return bool(answers) and answers - set(range(chat.first_trained)) <= chat.unlearned
