"""Log-probabilities of given tokens after given tokens, as transformers says them."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from job.data.build import Question
from job.data.worker.wire import IGNORED
from job.evaluation.shares import WHOLE, Batch, Share
from job.gguf.readings import Reading
from job.host.micro_batch import in_halves

SLICE_TOKENS = 256  # whose log-probabilities are computed at once
Place = tuple[int, int]  # numbers of a question and of a choice
KEEP = "logits_to_keep"  # of `forward`, in nearly every architecture


def of_rows(rows: Sequence[dict[str, list[int]]]) -> list[Reading]:
    """The learned tokens of each row, as one group."""
    return [
        Reading(
            row["input_ids"],
            [[(place, token) for place, token in enumerate(row["labels"][1:]) if token != IGNORED]],
        )
        for row in rows
    ]


def log_sums(
    model: Any, readings: Sequence[Reading], batch_rows: int, pad: int, kept: bool = False, share: Share = WHOLE
) -> list[list[float]]:
    """Of each reading, the sum of each group in nats, nothing for those of another's share; the longest are read first.
    `kept`: the model is asked for no other logits than those that are wanted, for long texts.
    """
    import torch

    def measured(batch: list[Reading]) -> list[list[float]]:
        width = max(len(reading.ids) for reading in batch)
        rows = [(reading.ids, width - len(reading.ids)) for reading in batch]
        ids = torch.tensor([[*own, *[pad] * free] for own, free in rows], device=model.device)
        mask = torch.tensor([[1] * len(own) + [0] * free for own, free in rows], device=model.device)
        places = sorted({place for reading in batch for group in reading.wanted for place, _ in group})
        few = {KEEP: torch.tensor(places, device=model.device)} if kept and can_keep(model) else {}
        logits = model(input_ids=ids, attention_mask=mask, **few).logits
        at = {place: number for number, place in enumerate(places)}
        if not few:
            at = {place: place for place in places}
        return [
            [_sum(said, [(at[place], token) for place, token in group]) for group in reading.wanted]
            for reading, said in zip(batch, logits, strict=True)
        ]

    def padded_tokens(numbers: Batch) -> int:
        return len(numbers) * len(readings[numbers[0]].ids)

    order = sorted(range(len(readings)), key=lambda number: -len(readings[number].ids))
    batches = [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]
    found: list[list[float]] = [[] for _ in readings]
    with torch.no_grad():
        for numbers in share.of(batches, padded_tokens):
            for number, sums in zip(numbers, in_halves([readings[i] for i in numbers], measured), strict=True):
                found[number] = sums
    return found


def sums_of_choices(
    model: Any, questions: list[Question], batch_rows: int, pad: int, share: Share = WHOLE
) -> list[list[float] | None]:
    """What `means` makes these of, None for what another's share has."""
    return [sums or None for sums in log_sums(model, of_choices(questions), batch_rows, pad, share=share)]


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


def means(questions: Sequence[Question], sums: Sequence[Sequence[float] | None]) -> list[list[float]]:
    """By question and choice, the mean log-probability of its tokens after the prompt, in nats, from what was found of
    `of_choices`.
    """
    found: list[list[float]] = [[0.0] * len(question.choices) for question in questions]
    for places, of_places in zip(_read(questions).values(), sums, strict=True):
        for (number, index), value in zip(places, of_places or (), strict=True):
            found[number][index] = value / len(questions[number].choices[index])
    return found


def _read(questions: Sequence[Question]) -> dict[tuple[int, ...], list[Place]]:
    read: defaultdict[tuple[int, ...], list[Place]] = defaultdict(list)
    for number, question in enumerate(questions):
        for index, choice in enumerate(question.choices):
            read[*question.input_ids[: question.shared], *choice[:-1]].append((number, index))
    return read


def can_keep(model: Any) -> bool:
    """Whether a model, or the one that PEFT has wrapped, computes single logits."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return KEEP in inspect.signature(inner.forward).parameters


def _sum(logits: Any, asked: list[tuple[int, int]]) -> float:
    """Of tokens at places of one row's `logits`."""
    import torch

    total = 0.0
    for start in range(0, len(asked), SLICE_TOKENS):
        places, tokens = zip(*asked[start : start + SLICE_TOKENS], strict=True)
        said = logits[list(places)].float().log_softmax(-1)
        total += float(said.gather(1, torch.tensor(tokens, device=said.device).unsqueeze(1)).sum(dtype=torch.float64))
    return total
