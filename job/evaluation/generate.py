"""Greedy answers to questions, as many at once as memory lets in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from job.host.micro_batch import in_halves

if TYPE_CHECKING:
    from job.data.build import Question

GENERATION_BATCH_TOKENS = 16_384  # prompts and answers of one batch: bounds the key-value cache (2 GiB for an 8B model)


Progress = Callable[[int], object]  # is called with how many questions are answered


def answer(
    model: Any, questions: list[Question], tokenizer: Any, stop_token_ids: list[int], max_new_tokens: int,
    progress: Progress = lambda _: None,
) -> list[str]:  # fmt: skip
    """Greedy answers, without special tokens, in the order of `questions`."""
    prompts = [question.input_ids for question in questions]
    pad = tokenizer.pad_token_id
    return spoken(tokenizer, answer_ids(model, prompts, pad, stop_token_ids, max_new_tokens, progress))


def spoken(tokenizer: Any, answers: list[list[int]]) -> list[str]:
    """The texts of generated ids, without special tokens and white space at the ends."""
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]


def answer_ids(
    model: Any, prompts: list[list[int]], pad: int, stop_token_ids: list[int], max_new_tokens: int,
    progress: Progress = lambda _: None,
) -> list[list[int]]:  # fmt: skip
    """The ids of greedy answers in the order of `prompts`, their end and padding with them; generated in batches
    padded on the left.
    """
    import torch
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_token_ids or None,
        pad_token_id=pad,
        use_cache=True,
    )

    def answered(batch: list[list[int]]) -> list[list[int]]:
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(q)) + q for q in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(q)) + [1] * len(q) for q in batch], device=model.device)
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
        answers: list[list[int]] = output[:, width:].tolist()
        return answers

    found: list[list[int]] = []
    for batch in _generation_batches(prompts, max_new_tokens):
        found += in_halves(batch, answered)
        progress(len(found))
    return found


def _generation_batches(prompts: list[list[int]], max_new_tokens: int) -> Iterator[list[list[int]]]:
    """Prompts in order, as many at once as `GENERATION_BATCH_TOKENS` lets in; at least one."""
    batch: list[list[int]] = []
    for prompt in prompts:
        width = max(map(len, [*batch, prompt])) + max_new_tokens
        if batch and width * (len(batch) + 1) > GENERATION_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch
