"""What becomes of a training on each GPU that is known: whether it fits, how long it takes, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from job.plan.cards import CARDS, Card
from job.plan.choice import Choice, Training
from job.plan.duration import Stage, asked_seconds, given_seconds, stages
from job.plan.fetching import NOTHING, Fetching
from job.plan.gpu_memory import GPU_CONTEXT_BYTES, GpuMemory, activation_budget, fits, gpu_memory, most_tokens
from job.plan.model_size import ModelSize
from job.plan.schedule import Schedule, schedule
from job.spec import JobSpec

if TYPE_CHECKING:
    from job.preview.evaluated import Evaluated

Scheduler = Callable[[int, bool], Schedule]
ANY = ""  # the key of a price that holds for every card


@dataclass(frozen=True)
class OnCard:
    """A training on a card. `fits`: "yes"; "tight", where it does with the rows that there are and would not if each
    had `max_seq_length`; "smaller", in smaller forward passes than the spec names; "no", and "no fp8" on a card that
    does not have what the spec asks for: then there are no times. `rows` of a forward pass, `kept_layers` that compute
    nothing again, `needed` with both: what a run would choose.
    """

    key: str
    card: Card
    fits: str
    rows: int
    kept_layers: int
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
    spec: JobSpec, size: ModelSize, scheduled: Scheduler, data_seconds: float, key: str, prices: Mapping[str, float],
    evaluated: Evaluated | None = None, fetched: Fetching = NOTHING,
) -> OnCard:  # fmt: skip
    """What becomes of the training there: how it would be computed, and whether that fits. `data_seconds`: as long as
    all rows take to tokenise. Without `evaluated` nothing is measured.
    """
    card = CARDS[key]
    cards = spec.resources.known_gpus * spec.resources.nodes
    training = Training(spec, size, lambda count: scheduled(count, spec.data.packing), card, cards)
    choice = training.choose(card.bytes - GPU_CONTEXT_BYTES)
    while not _holds(card, needed := _needed(training, choice)) and (smaller := training.choose_after(choice)):
        choice = smaller  # as a run does it
    refused = "no fp8" if spec.training.compute == "fp8" and not card.fp8 else "no"
    if refused == "no fp8" or not _holds(card, needed):
        return OnCard(key, card, refused, choice.batch.rows, choice.kept_layers, needed)
    planned = training.scheduled(choice.batch.rows)
    seconds = training.seconds(choice) * planned.epochs + given_seconds(spec, size, planned, card)
    taken = stages(spec, size, data_seconds, seconds, cards, *_asked_seconds(spec, size, card, evaluated))
    return OnCard(
        key,
        card,
        _verdict(training, choice, card),
        choice.batch.rows,
        choice.kept_layers,
        needed,
        seconds / planned.steps,
        tuple(fetched.added_to(taken)),
        prices.get(key, prices.get(ANY)),
    )


def _asked_seconds(spec: JobSpec, size: ModelSize, card: Card, asked: Evaluated | None) -> tuple[float, float, float]:
    """Of what base and tuned model each are asked, the merged weights, and the judge."""
    if asked is None:
        return 0.0, 0.0, 0.0
    tasks = {work: asked_seconds(spec, size, card, work.asked) for work in asked.benchmarks if work.asked}
    of_merged = sum(seconds for work, seconds in tasks.items() if work.of_merged)
    return asked.seconds(spec, size, card) + sum(tasks.values()), of_merged, asked.judge_seconds


def _needed(training: Training, choice: Choice) -> GpuMemory:
    spec, size = training.spec, training.size
    longest = training.scheduled(choice.batch.rows).longest_tokens
    return gpu_memory(spec, size, choice.batch.rows, longest, choice.kept_layers)


def _holds(card: Card, needed: GpuMemory) -> bool:
    return fits(needed.expected - GPU_CONTEXT_BYTES, card.bytes)


def _verdict(training: Training, choice: Choice, card: Card) -> str:
    """Of a card that holds the rows that there are."""
    wanted, usable = training.spec.training.micro_batch, card.bytes - GPU_CONTEXT_BYTES
    if wanted != "auto" and choice.batch.rows < wanted:
        return "smaller"
    with_any_rows = training.choose(usable, most_tokens(training.spec, 1))
    holds_any = with_any_rows.activation_bytes <= activation_budget(training.spec, training.size, usable)
    return "yes" if holds_any else "tight"
