"""What becomes of a training on each GPU that is known: whether it fits, how long it takes, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from job.host.micro_batch import MicroBatch
from job.plan.cards import CARDS, Card
from job.plan.duration import Stage, stages, train_seconds
from job.plan.gpu_memory import GPU_CONTEXT_BYTES, GpuMemory, fits, gpu_memory
from job.plan.model_size import ModelSize
from job.plan.schedule import Schedule, schedule
from job.spec import JobSpec

Scheduler = Callable[[int, bool], Schedule]
ANY = ""  # the key of a price that holds for every card


@dataclass(frozen=True)
class OnCard:
    """A training on a card. `fits`: "yes"; "tight", where it does with the rows that there are and would not if each
    had `max_seq_length`; "smaller", in micro-batches of `rows`, which a run finds by itself; "no", and then there are
    no times. `needed`: with those micro-batches.
    """

    key: str
    card: Card
    fits: str
    rows: int
    needed: GpuMemory
    step_seconds: float | None = None
    stages: tuple[Stage, ...] = ()
    price_per_hour: float | None = None

    @property
    def seconds(self) -> float | None:
        return sum(stage.seconds for stage in self.stages) if self.stages else None

    @property
    def cost(self) -> float | None:
        return (
            None if self.seconds is None or self.price_per_hour is None else self.seconds / 3600 * self.price_per_hour
        )


def scheduler(spec: JobSpec, lengths: Sequence[int], times: float) -> Scheduler:
    """The steps in micro-batches of so many rows, packed or not; `lengths` as `Rows` has them."""

    @cache
    def scheduled(micro_batch: int, packing: bool) -> Schedule:
        return schedule(spec, lengths, micro_batch, packing, times)

    return scheduled


def on_card(
    spec: JobSpec, size: ModelSize, scheduled: Scheduler, data_seconds: float, key: str, prices: Mapping[str, float]
) -> OnCard:
    """What becomes of the training there; `data_seconds`: as long as all rows take to tokenise."""
    card, batch = CARDS[key], MicroBatch(spec.training.batch_size, spec.training.gradient_accumulation_steps)
    longest = scheduled(batch.rows, spec.data.packing).longest_tokens
    whole = batch
    while True:
        needed = gpu_memory(spec, size, batch.rows, longest)
        holds = fits(needed.expected - GPU_CONTEXT_BYTES, card.bytes)
        smaller = batch.smaller()
        if holds or smaller is None:
            break
        batch = smaller
    if not holds:
        return OnCard(key, card, "no", batch.rows, needed)
    verdict = "smaller" if batch != whole else "yes" if needed.high <= card.bytes else "tight"
    planned = scheduled(batch.rows, spec.data.packing)
    training = train_seconds(spec, size, planned, card)
    return OnCard(
        key,
        card,
        verdict,
        batch.rows,
        needed,
        training / planned.steps,
        tuple(stages(spec, size, data_seconds, training)),
        prices.get(key, prices.get(ANY)),
    )
