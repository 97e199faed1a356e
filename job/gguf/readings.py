"""Log-probabilities of given tokens after given tokens, as llama.cpp says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from job.gguf.native import CHUNK_TOKENS, LlamaContext


@dataclass(frozen=True)
class Reading:
    """Token ids, and groups of (place, token): of each group the summed log-probability of its tokens is wanted, each
    right after the id at its place.
    """

    ids: list[int]
    wanted: list[list[tuple[int, int]]]


def log_sums(context: LlamaContext, readings: Sequence[Reading]) -> list[list[float]]:
    """Of each reading, the sum of each group in nats. Memory holds the logits of CHUNK_TOKENS tokens at a time."""
    return [_sums(context, reading) for reading in readings]


def _sums(context: LlamaContext, reading: Reading) -> list[float]:
    import torch

    context.forget()
    sums = [0.0] * len(reading.wanted)
    for start in range(0, len(reading.ids), CHUNK_TOKENS):
        logits = torch.from_numpy(context.evaluate(reading.ids[start : start + CHUNK_TOKENS], start))
        asked = [
            (group, place - start, token)
            for group, pairs in enumerate(reading.wanted)
            for place, token in pairs
            if start <= place < start + len(logits)
        ]
        if asked:
            said = logits.log_softmax(-1)
            for group, place, token in asked:
                sums[group] += float(said[place, token])
    return sums
