"""How likely a model finds each of a few answers to a question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from job.host.micro_batch import in_halves

if TYPE_CHECKING:
    from job.data.build import Question

Place = tuple[int, int]  # numbers of a question and of a choice


def log_probabilities(
    model: Any, questions: list[Question], batch_rows: int, pad: int, progress: Callable[[int], object] = lambda _: None
) -> list[list[float]]:
    """Of each question's choices, if it has some, the mean log-probability of their tokens after the prompt, in nats.

    What is read before the last token of a choice is read once for all choices that have it: where each is one token,
    only the prompt. `progress(sequences done)` is called as it goes.
    """
    import torch

    read: defaultdict[tuple[int, ...], list[Place]] = defaultdict(list)
    for number, question in enumerate(questions):
        for index, choice in enumerate(question.choices):
            read[*question.input_ids[: question.shared], *choice[:-1]].append((number, index))
    found: list[list[float]] = [[0.0] * len(question.choices) for question in questions]

    def measured(batch: list[tuple[int, ...]]) -> list[dict[Place, float]]:
        width = max(map(len, batch))
        ids = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in batch], device=model.device)
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits
        said: list[dict[Place, float]] = [{} for _ in batch]
        for row, ids in enumerate(batch):
            for number, index in read[ids]:
                start, wanted = questions[number].shared, questions[number].choices[index]
                predicted = logits[row, start - 1 : len(ids)].float().log_softmax(-1)
                following = torch.tensor(wanted, device=logits.device).unsqueeze(1)
                said[row][number, index] = float(predicted.gather(1, following).mean())
        return said

    sequences = sorted(read, key=len, reverse=True)
    with torch.no_grad():
        for start in range(0, len(sequences), batch_rows):
            for said in in_halves(sequences[start : start + batch_rows], measured):
                for (number, index), value in said.items():
                    found[number][index] = value
            progress(min(start + batch_rows, len(sequences)))
    return found
