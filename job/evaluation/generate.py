"""Greedy answers to questions, as many at once as memory lets in."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from job.evaluation.shares import WHOLE, Share
from job.host.micro_batch import in_halves

GENERATION_BATCH_TOKENS = 16_384  # prompts and answers of one batch: bounds the key-value cache (2 GiB for an 8B model)
ORDER = 6  # of batches where not all may be answered


def spoken(tokenizer: Any, answers: list[list[int]], stop_token_ids: Collection[int] = ()) -> list[str]:
    """The texts of generated ids, without their ends, special tokens, and white space at the ends."""
    whole = [ids[:-1] if ids and ids[-1] in stop_token_ids else ids for ids in answers]
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in whole]


def answer_ids(
    model: Any, prompts: list[list[int]], pad: int, stop_token_ids: list[int], max_new_tokens: int
) -> list[list[int]]:
    """The ids of greedy answers in the order of `prompts`, with the token that ends them."""
    found: list[list[int]] = [[] for _ in prompts]
    for numbers, answers in answered(model, prompts, pad, stop_token_ids, max_new_tokens):
        for number, ids in zip(numbers, answers, strict=True):
            found[number] = ids
    return found


def answered(
    model: Any, prompts: list[list[int]], pad: int, stop_token_ids: list[int], max_new_tokens: int,
    deadline: float = math.inf, share: Share = WHOLE,
) -> Iterator[tuple[list[int], list[list[int]]]]:  # fmt: skip
    """Batch by batch of a share, numbers of prompts and the ids of their greedy answers, with the token that ends them.

    Prompts of like lengths are answered together, padded on the left, the longest first. With a `deadline`, of
    `time.monotonic`, the batches come in a random order, so that those that are left out are as any others; one that
    is not done by then is left out, too.
    """
    batches = list(generation_batches(prompts, max_new_tokens))
    if deadline < math.inf:
        random.Random(ORDER).shuffle(batches)  # noqa: S311 - the same each time
    for numbers in share.of(batches, lambda batch: len(batch) * (len(prompts[batch[0]]) + max_new_tokens)):
        if time.monotonic() >= deadline:
            return
        asked = [prompts[number] for number in numbers]
        said = in_halves(asked, lambda batch: _said(model, batch, pad, stop_token_ids, max_new_tokens, deadline))
        if time.monotonic() >= deadline:
            return
        yield numbers, said


def _said(
    model: Any, batch: list[list[int]], pad: int, stop_token_ids: list[int], max_new_tokens: int, deadline: float
) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        max_time=None if deadline == math.inf else max(0.0, deadline - time.monotonic()),
        eos_token_id=stop_token_ids or None,
        pad_token_id=pad,
        use_cache=True,
    )
    width = max(map(len, batch))
    ids = torch.tensor([[pad] * (width - len(q)) + q for q in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(q)) + [1] * len(q) for q in batch], device=model.device)
    with torch.no_grad(), _only(model, greedy):
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
    return [_until_end(ids, stop_token_ids) for ids in output[:, width:].tolist()]


def _until_end(ids: list[int], stops: list[int]) -> list[int]:
    """Without the padding that follows the end."""
    return ids[: next((place for place, token in enumerate(ids, 1) if token in stops), len(ids))]


@contextmanager
def _only(model: Any, settings: Any) -> Iterator[None]:
    """Within, `settings` are all: what they leave unsaid would be filled in from the model's own."""
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    before = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = settings
    try:
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own


def generation_batches(prompts: list[list[int]], max_new_tokens: int) -> Iterator[list[int]]:
    """Numbers of prompts, the longest first, as many at once as `GENERATION_BATCH_TOKENS` lets in; at least one."""
    batch: list[int] = []
    for number in sorted(range(len(prompts)), key=lambda number: -len(prompts[number])):
        if batch and (len(prompts[batch[0]]) + max_new_tokens) * (len(batch) + 1) > GENERATION_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
