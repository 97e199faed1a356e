"""What experience says of a spec that is valid and will run: each piece with its place and its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from job.spec import JobSpec
from job.training.methods import METHODS

ADAPTER_RATES = (1e-4, 5e-4)  # what adapters are usually trained with
AROUND = 10  # times as much or as little as is usual for a method that has a rate of its own; with small models more
FULL_RATES = (1e-5, 5e-5)
VERY_SMALL, SMALL_RATES = 500_000_000, (1e-4, 2e-3)  # weights below which the usual rate teaches little in few steps
FEW_ROWS, USUAL_ROWS = 500, "500 to 5,000"
SMALL_SET, MANY_EPOCHS = 1000, 5
STEPS_TO_LEARN = 120  # which small sets may take as many epochs as it needs to come to; `init` aims at 100
MANY_CUT = 0.05  # of the rows
FAR_ABOVE, SHORT = 2, 256  # times the longest row; a limit below that costs nothing
WORTH_PACKING, STEPS_WORTH_PACKING = 0.8, 20  # of the time


@dataclass(frozen=True)
class Facts:
    """What is known of a run beside its spec. `packing_time`: what the training would take with packing, as a part of
    what it takes; None where packing is impossible or is on. `formats`: of the training sources, in their order.
    `chats`: whether the model comes with a chat template; `quantised`: whether its weights, `parameters` of them, are
    packed already.
    """

    rows: int
    epochs: float
    steps: int
    longest_tokens: int
    truncated_rows: int
    packing_time: float | None
    formats: tuple[str, ...]
    chats: bool
    quantised: bool
    parameters: int


@dataclass(frozen=True)
class Advice:
    where: str
    text: str
    reason: str


def advise(spec: JobSpec, facts: Facts) -> list[Advice]:
    """Everything that there is to say, in the order of the spec."""
    return [advice for rule in RULES for advice in rule(spec, facts)]


def _merge_base(spec: JobSpec, facts: Facts) -> Iterator[Advice]:
    if facts.quantised and spec.model.merge_base is None:
        yield Advice(
            "/model/merge_base",
            "name the 16-bit model that this base was quantised from, or take that as the source",
            "without it an adapter is all that can be made: merged weights and GGUF need the 16-bit weights",
        )


def _length(spec: JobSpec, facts: Facts) -> Iterator[Advice]:
    most, longest = spec.model.max_seq_length, max(facts.longest_tokens, 1)
    if not spec.data.packing and most > SHORT and most > FAR_ABOVE * longest and not facts.truncated_rows:
        power_of_two = 1 << (longest - 1).bit_length()
        yield Advice(
            "/model/max_seq_length",
            f"{power_of_two} would do instead of {most}",
            f"the longest row has {longest} tokens; GPUs are chosen and memory is checked for rows that are not there",
        )


def _cut(spec: JobSpec, facts: Facts) -> Iterator[Advice]:
    if facts.rows and facts.truncated_rows > MANY_CUT * facts.rows:
        yield Advice(
            "/model/max_seq_length",
            f"more than {spec.model.max_seq_length}, or shorter rows",
            f"{facts.truncated_rows} of {facts.rows} rows are cut: a model that sees no ends goes on talking",
        )


def _template(spec: JobSpec, facts: Facts) -> Iterator[Advice]:
    if not facts.chats and spec.data.chat_template != "model":
        yield Advice(
            "/data/chat_template",
            "the instruct version of this model, if there is one",
            "a base without a chat template has never read one: the marks of a chat, and when an answer ends, have to "
            "be learned from these rows as well",
        )


def _formats(_: JobSpec, facts: Facts) -> Iterator[Advice]:
    for index, name in enumerate(facts.formats):
        if facts.chats and name in ("prompt_completion", "text"):
            yield Advice(
                f"/data/train/{index}/format",
                "write rows as messages or alpaca, if the model is to answer in conversations",
                f"{name} is learned without the chat template that this model was made to answer in",
            )


def _packing(_: JobSpec, facts: Facts) -> Iterator[Advice]:
    share = facts.packing_time
    if share is not None and share <= WORTH_PACKING and facts.steps >= STEPS_WORTH_PACKING:
        yield Advice(
            "/data/packing",
            f"true would take about {1 - share:.0%} of the training time away",
            "several short rows share a sequence then, instead of padding; an epoch has fewer steps of more rows each",
        )


def _rows(_: JobSpec, facts: Facts) -> Iterator[Advice]:
    if facts.rows < FEW_ROWS:
        yield Advice(
            "/data/train",
            f"more rows than {facts.rows}, if there are any",
            f"{USUAL_ROWS} good ones are usual: with fewer, a model learns the form rather than the task",
        )


def _rate(spec: JobSpec, facts: Facts) -> Iterator[Advice]:
    rate, full = spec.training.learning_rate, spec.model.precision == "full"
    small = not full and facts.parameters < VERY_SMALL
    low, high = FULL_RATES if full else SMALL_RATES if small else ADAPTER_RATES
    if usual := METHODS[spec.training.method].learning_rate:
        low, high = (usual, usual * AROUND**2) if small else (usual / AROUND, usual * AROUND)
    if full and rate > high:
        why = "that is a rate for adapters: where every weight is trained, it makes the model forget what it knew"
    elif not full and rate > high:
        why = "above that the loss of an adapter tends to jump, or the model to repeat its rows"
    elif not full and rate < low:
        why = "below that an adapter learns little in the usual number of steps"
    else:
        return
    yield Advice("/training/learning_rate", f"{low:g} to {high:g} instead of {rate:g}", why)


def _epochs(_: JobSpec, facts: Facts) -> Iterator[Advice]:
    if facts.epochs > MANY_EPOCHS and facts.rows < SMALL_SET and facts.steps > STEPS_TO_LEARN:
        yield Advice(
            "/training/epochs",
            f"1 to 3 epochs instead of {facts.epochs:.3g}",
            f"{facts.rows} rows seen so often are learned by heart; the held-out loss shows when that begins",
        )


RULES: tuple[Callable[[JobSpec, Facts], Iterator[Advice]], ...] = (
    _merge_base,
    _length,
    _cut,
    _template,
    _formats,
    _packing,
    _rows,
    _rate,
    _epochs,
)
