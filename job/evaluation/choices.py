"""How likely a model finds each of a few answers to a question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from job.data.build import Question
from job.evaluation.readings import log_sums
from job.gguf.readings import Reading

Place = tuple[int, int]  # numbers of a question and of a choice


def log_probabilities(model: Any, questions: list[Question], batch_rows: int, pad: int) -> list[list[float]]:
    """Of each question's choices, if any, the mean log-probability of their tokens after the prompt, in nats."""
    return means(questions, log_sums(model, of_choices(questions), batch_rows, pad))


def of_choices(questions: Sequence[Question]) -> list[Reading]:
    """What is read before the last token of a choice is read once for all choices that have it: where each is one
    token, only the prompt.
    """
    found = []
    for ids, places in _read(questions).items():
        wanted = []
        for number, index in places:
            start = questions[number].shared - 1
            wanted.append([(start + i, token) for i, token in enumerate(questions[number].choices[index])])
        found.append(Reading(list(ids), wanted))
    return found


def means(questions: Sequence[Question], sums: Sequence[Sequence[float]]) -> list[list[float]]:
    """By question and choice, from what was found of `of_choices`."""
    found: list[list[float]] = [[0.0] * len(question.choices) for question in questions]
    for places, of_places in zip(_read(questions).values(), sums, strict=True):
        for (number, index), value in zip(places, of_places, strict=True):
            found[number][index] = value / len(questions[number].choices[index])
    return found


def _read(questions: Sequence[Question]) -> dict[tuple[int, ...], list[Place]]:
    read: defaultdict[tuple[int, ...], list[Place]] = defaultdict(list)
    for number, question in enumerate(questions):
        for index, choice in enumerate(question.choices):
            read[*question.input_ids[: question.shared], *choice[:-1]].append((number, index))
    return read
