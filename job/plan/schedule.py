"""How sequences become micro-batches and steps, as the trainer makes them."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from job.spec import JobSpec
from job.training.methods import METHODS

PACKED_AT_ONCE = 1000  # rows among which TRL's packing looks for a place


@dataclass(frozen=True)
class Schedule:
    """Steps of a training in micro-batches of `rows` sequences. `padded_tokens`: of an epoch with the padding of its
    micro-batches, `tokens` without; `longest_tokens` of a sequence; `seen_tokens`: of the row that a token is in, the
    mean over all tokens. `joined`: a GPU computes the sequences of a micro-batch one behind the other, without padding.
    """

    rows: int
    sequences: int
    tokens: int
    padded_tokens: int
    longest_tokens: int
    seen_tokens: float
    micro_batches: int
    steps_an_epoch: int
    steps: int
    packed: bool
    joined: bool

    @property
    def computed_tokens(self) -> int:
        """Of an epoch on a GPU."""
        return self.tokens if self.joined else self.padded_tokens

    @property
    def padding(self) -> float:
        """The share of what a GPU computes that is padding."""
        return 1 - self.tokens / self.computed_tokens

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_an_epoch

    @property
    def tokens_a_step(self) -> float:
        return self.tokens / self.steps_an_epoch


def schedule(spec: JobSpec, lengths: Sequence[int], rows: int, packing: bool, times: float = 1.0) -> Schedule:
    """`lengths`: tokens of each sequence of an epoch, or of a sample that is multiplied by `times`. The steps
    are those of the spec's own batch, however small the micro-batches of `rows` are.
    """
    training, method = spec.training, METHODS[spec.training.method]
    answers = method.answers(spec)
    found = [length for length in lengths for _ in range(answers)]
    if packing:
        found = packed(found, spec.model.max_seq_length)
    if spec.data.shuffle:
        random.Random(training.seed).shuffle(found)  # noqa: S311 - not the trainer's own order, and as good an example
    padded = sum(
        max(batch) * len(batch) for start in range(0, len(found), rows) if (batch := found[start : start + rows])
    )
    sequences = round(len(found) * times)
    batches = math.ceil(sequences / training.batch_size)
    steps_an_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    steps = training.max_steps or math.ceil((training.epochs or 1.0) * steps_an_epoch)
    return Schedule(
        rows,
        sequences,
        round(sum(found) * times),
        round(padded * times),
        max(found),
        sum(length * length for length in found) / sum(found),
        math.ceil(sequences / rows),
        steps_an_epoch,
        steps,
        packing,
        method.joins(spec),
    )


def packed(lengths: Sequence[int], most: int) -> list[int]:
    """Tokens of each pack, by best fit, the longest first, as TRL does it."""
    packs: list[int] = []
    for start in range(0, len(lengths), PACKED_AT_ONCE):
        spaces: list[int] = []  # left in each pack, sorted
        for length in sorted(lengths[start : start + PACKED_AT_ONCE], reverse=True):
            place = bisect_left(spaces, length)
            space = spaces.pop(place) if place < len(spaces) else most
            insort(spaces, space - length)
        packs += [most - space for space in spaces]
    return packs
