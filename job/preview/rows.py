"""The rows of a spec as a run will see them: all of them, or a sample and how far its figures may be off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.data.build import Prepared, build_dataset
from job.data.figures import sizes
from job.data.select import default_held_out
from job.data.sources import Selection
from job.preview.evaluated import generates, question_tokens, read_tokens
from job.report.samples import first_samples
from job.spec import HeldOutSpec
from job.training.methods import METHODS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from job.source import Beside, FetchedSource
    from job.spec import JobSpec

SURE = 1.96  # standard errors to either side hold the true figure in 19 of 20 samples
UNSEEN = 3  # of what a sample does not show once, up to so many parts of its size may be there


@dataclass(frozen=True)
class Estimate:
    """A count; from a sample, with bounds that hold it in 19 of 20 samples. Otherwise all three are equal."""

    expected: int
    low: int
    high: int


@dataclass(frozen=True)
class Rows:
    """`read_rows` of the `whole_rows` that the training sources select were rendered and tokenised, in `seconds`; all
    of them would take `whole_seconds`. The counts are of all rows; tokens and sequences are of one epoch.

    `lengths`: tokens of the sequences that were read, in the order of training, each of which is one of `times`
    sequences. `duplicate_rows`, `also_trained`: copies within the training rows, and held-out sequences that are
    trained on, as far as they were read. `truncated` and `dropped`: places of the first of them. `questions`,
    `readings`: tokens of each question that is answered, and of each row whose loss is measured; from a sample as many
    as a mean row has.
    """

    read_rows: int
    whole_rows: int
    seconds: float
    whole_seconds: float
    times: float
    lengths: list[int]
    rows: Estimate
    sequences: Estimate
    tokens: Estimate
    trained_tokens: Estimate
    longest_tokens: int
    histogram: dict[str, int]
    truncated_rows: Estimate
    dropped_rows: Estimate
    duplicate_rows: int
    held_out_rows: Estimate
    also_trained: int | None
    held_out_words: str
    truncated: list[str]
    dropped: list[str]
    notes: list[str]
    replay_sequences: Estimate | None
    samples: tuple[str, ...]
    questions: list[int]
    readings: list[int]


def see_rows(
    spec: JobSpec,
    train: list[FetchedSource],
    held_out: list[FetchedSource] | None,
    model_dir: Path,
    workdir: Path,
    progress: Callable[[int, int | None], None],
    sample: int | None,
    beside: Beside,
) -> Rows:
    """The rows through the data stage of a run, `sample` of them if that is fewer. Raises as that does."""
    whole = sum(len(Selection(source)) for source in train)
    own = None if held_out is None else sum(len(Selection(source)) for source in held_out)
    part = sample if sample and sample < whole else None
    asked = spec if part is None else _measuring_nothing(spec)
    start = time.monotonic()
    prepared = build_dataset(asked, train, held_out, model_dir, workdir, progress, part, beside)
    METHODS[spec.training.method].look(asked, prepared, False)
    seconds = time.monotonic() - start
    return _rows(spec, prepared, whole, own, seconds)


def _measuring_nothing(spec: JobSpec) -> JobSpec:
    """Nothing is drawn from a sample: how many rows are held out is a matter of all of them."""
    data = spec.data if spec.data.held_out_sources else replace(spec.data, held_out=False)
    return replace(spec, data=data, evaluation=replace(spec.evaluation, exact_match_rows=0))


def _rows(spec: JobSpec, prepared: Prepared, whole: int, own: int | None, seconds: float) -> Rows:
    train, held_out = prepared.report.train, prepared.report.held_out
    read = train["read_rows"]
    lengths, trained = sizes(prepared.train)
    dropped = _share(train["dropped_rows"], read, whole)
    left, words = _held_out(spec, prepared, read, whole, own)
    rows = Estimate(
        *(max(1, n - left.expected) for n in (whole - dropped.expected, whole - dropped.high, whole - dropped.low))
    )
    if read == whole:
        rows = Estimate(*[train["rows"]] * 3)
    times = rows.expected / train["rows"]
    unread = math.sqrt(1 - read / whole)
    mean, drawn = round(float(lengths.mean())), read != whole and generates(spec.evaluation)
    unasked = min(spec.evaluation.exact_match_rows, left.expected) if drawn else 0
    return Rows(
        read_rows=read,
        whole_rows=whole,
        seconds=seconds,
        whole_seconds=seconds * whole / read,
        times=times,
        lengths=lengths.tolist(),
        rows=rows,
        sequences=Estimate(*(round(len(lengths) / train["rows"] * n) for n in (rows.expected, rows.low, rows.high))),
        tokens=_total(lengths, times, unread),
        trained_tokens=_total(trained, times, unread),
        longest_tokens=train["longest_tokens"],
        histogram=train["lengths"],
        truncated_rows=_share(train["truncated_rows"], read, whole),
        dropped_rows=dropped,
        duplicate_rows=train["duplicate_rows"],
        held_out_rows=left,
        also_trained=held_out["also_trained"] if held_out else None,
        held_out_words=words,
        truncated=train["truncated_examples"],
        dropped=train["dropped_examples"],
        notes=[note for note in prepared.report.notes if note != words],
        replay_sequences=_replayed(prepared, rows),
        samples=first_samples(prepared, METHODS[spec.training.method].learns_answers),
        questions=[*question_tokens(spec.evaluation, prepared), *[mean] * unasked],
        readings=read_tokens(prepared) if read == whole else [mean] * left.expected,
    )


def _replayed(prepared: Prepared, rows: Estimate) -> Estimate | None:
    """How many general sequences of an epoch are mixed in: as many for each row as among those that were read."""
    if prepared.report.replay is None:
        return None
    each = prepared.report.replay["sequences"] / prepared.report.train["rows"]
    return Estimate(*(round(each * count) for count in (rows.expected, rows.low, rows.high)))


def _held_out(spec: JobSpec, prepared: Prepared, read: int, whole: int, own: int | None) -> tuple[Estimate, str]:
    """How many rows are held out, and which, in words; of a sample none were."""
    report, asked = prepared.report, spec.data.held_out
    if read == whole:
        return Estimate(*[report.held_out["rows"] if report.held_out else 0] * 3), report.held_out_words
    if own is not None and report.held_out:
        found = _share(report.held_out["rows"], report.held_out["read_rows"], own)
        return found, "rows of data.held_out.sources are held out"
    usable = round(whole * (1 - report.train["dropped_rows"] / read))
    count = 0
    if asked == "auto":
        count = default_held_out(usable)
    elif isinstance(asked, HeldOutSpec):
        count = asked.rows if asked.rows is not None else max(1, round((asked.fraction or 0.0) * usable))
    if not count:
        return Estimate(0, 0, 0), "no rows are held out"
    return Estimate(count, count, count), f"{count} rows are held out, drawn by training.seed {spec.training.seed}"


def _share(found: int, read: int, whole: int) -> Estimate:
    """How many of all rows are what `found` of those that were `read` are."""
    if read == whole:
        return Estimate(found, found, found)
    share = found / read
    error = SURE * whole * math.sqrt(share * (1 - share) / read * (1 - read / whole))
    high = math.ceil(whole * share + error) if found else min(whole - read, math.ceil(UNSEEN * whole / read))
    return Estimate(round(whole * share), max(found, math.floor(whole * share - error)), high)


def _total(values: NDArray[Any], times: float, unread: float) -> Estimate:
    """The sum over all sequences; `unread`: the root of the share of rows that were not read."""
    total = float(values.sum()) * times
    error = SURE * float(values.std()) * math.sqrt(len(values)) * times * unread
    return (
        Estimate(round(total), math.floor(total - error), math.ceil(total + error))
        if error
        else Estimate(*[round(total)] * 3)
    )
