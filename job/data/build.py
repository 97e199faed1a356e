"""Rows → conversations → token ids with labels: the data half of a job, from fetched files to datasets."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from job.data.chat import set_chat_template
from job.data.figures import DataReport, figures, shared
from job.data.notes import label_notes, row_notes
from job.data.pool import Pool
from job.data.probes import TemplateProbe, ask_probes
from job.data.questions import Question, ask_prompts, ask_rows
from job.data.references import reference_notes
from job.data.replay import trained_on
from job.data.select import sampled
from job.data.sources import Selection
from job.data.split import Part, in_order, split
from job.data.table import Table
from job.data.tokenizer import load_tokenizer, own_end_ids, set_pad_token, write_tokenizer
from job.data.worker import wire
from job.host.cgroup import worker_count
from job.source import FetchedSource
from job.source.beside import FORGETTING, REPLAY, Beside, in_the_form
from job.spec import JobSpec
from job.training.methods import METHODS
from job.training.methods.record import TOKENS

__all__ = ["DataReport", "Prepared", "Question", "TemplateProbe", "build_dataset"]

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Prepared:
    """Everything that training and evaluation need of the data.

    `digest`: SHA-256 over the sequences that are trained on, in their order. `train`, `held_out`: `datasets.Dataset`
    of `input_ids` and `labels`, lists of int32 of one length of at most `max_seq_length`, -100 where nothing is
    learned (of pairs those of the chosen answers; `rejected_input_ids` and `rejected_labels` beside them);
    memory-mapped, in the order of training. `tokenizer`: with the job's `chat_template` and the turn's end
    token as `eos_token`. `template`: that template's Jinja, "" for raw text. `probes`: made-up conversations through
    it, for those who must write it in another language. `general`: like `held_out`, what forgetting is measured on.
    """

    digest: str
    train: Any
    held_out: Any | None
    tokenizer: Any
    template: str
    probes: tuple[TemplateProbe, ...]
    questions: list[Question]
    exact_match: list[Question]
    report: DataReport
    general: Any | None = None

    @property
    def template_sha256(self) -> str:
        return hashlib.sha256(self.template.encode()).hexdigest()


def build_dataset(
    spec: JobSpec,
    train: list[FetchedSource],
    held_out: list[FetchedSource] | None,
    model_dir: Path,
    workdir: Path,
    progress: Progress,
    sample: int | None = None,
    beside: Beside | None = None,
) -> Prepared:
    """Reads, renders, masks and tokenises every row; `progress(rows done, rows in all)` is called as it goes. With
    `sample`, only so many rows of the training sources and of the held-out sources, drawn by the seed.

    Writes Arrow files and the tokenizer under `workdir`/data. Raises `InputError` for files, rows and templates that
    do not fit, `PolicyError` for templates that the sandbox refuses, `CapacityError` if memory runs out.
    """
    asked = Asked.of(train, held_out or [], beside or Beside(), sample, spec.training.seed)
    chats = asked.check_columns()
    tokenizer = load_tokenizer(model_dir)
    end_ids = own_end_ids(tokenizer, model_dir)
    folder = workdir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    notes = [remark for selection in asked.every for remark in selection.remarks()]
    set_pad_token(tokenizer, model_dir, notes)
    with Pool(write_tokenizer(tokenizer, folder / "tokenizer.json"), worker_count()) as pool:
        job = set_chat_template(spec, tokenizer, chats, pool, notes)
        probes = ask_probes(pool, job)
        questions = ask_prompts(pool, job, spec.evaluation.prompts)
        tables = _Tables(spec, pool, job, folder, _Progress(progress, asked.rows))
        table, own, replay, general = tables.made_of(asked)
        training, kept_out, words = split(spec, table, own, notes)
        count = spec.evaluation.exact_match_rows if kept_out else 0
        exact_match = _exact_match(spec, pool, job, asked.held_out if held_out else asked.train, kept_out, count)
    measured = in_order(general) if general else None
    trained = trained_on(spec, training, replay, [part for part in (kept_out, measured) if part], notes)
    notes += [note for selection in asked.every for note in selection.column_notes()]
    held_out_rows = kept_out.table.dataset(kept_out.sequences) if kept_out else None
    notes += reference_notes(spec.evaluation, exact_match) + label_notes(trained.dataset, held_out_rows)
    notes += row_notes([each for each in (table, own, replay, general) if each], spec.model.max_seq_length)
    return Prepared(
        digest=trained.digest,
        train=trained.dataset,
        held_out=held_out_rows,
        tokenizer=tokenizer,
        template=job.chat_template,
        probes=probes,
        questions=questions,
        exact_match=exact_match,
        report=DataReport(
            train=figures(training),
            held_out=_measured_on(kept_out, training),
            held_out_words=words,
            stop_token_ids=list(dict.fromkeys([*([] if job.eos_id is None else [job.eos_id]), *end_ids])),
            notes=notes,
            replay=trained.replay,
            general=_measured_on(measured, training),
        ),
        general=measured.table.dataset(measured.sequences) if measured else None,
    )


def _measured_on(part: Part | None, training: Part) -> dict[str, Any] | None:
    return figures(part) | {"also_trained": shared(part, training)} if part else None


@dataclass(frozen=True)
class Asked:
    """The selected rows of each source: of the task, and general ones that are mixed in and that are measured."""

    train: list[Selection]
    held_out: list[Selection]
    replay: list[Selection]
    general: list[Selection]

    @classmethod
    def of(
        cls, train: list[FetchedSource], held_out: list[FetchedSource], beside: Beside, sample: int | None, seed: int
    ) -> Self:
        """`sample` rows of each of the four, where that is given."""
        own = [select(sources, sample, seed) for sources in (train, held_out)]
        chats = any([selection.check_columns() for selection in own[0]] if beside.sources else ())
        general = ([in_the_form(source, chats) for source in sources] for sources in (beside.replay, beside.forgetting))
        return cls(*own, *(select(sources, sample, seed) for sources in general))

    @property
    def every(self) -> list[Selection]:
        return [*self.train, *self.held_out, *self.replay, *self.general]

    @property
    def rows(self) -> int:
        return sum(map(len, self.every))

    def check_columns(self) -> bool:
        """Raises `InputError` if a first row lacks a needed column. Returns whether any rows are conversations."""
        return any(list(map(Selection.check_columns, self.every)))


def select(sources: list[FetchedSource], sample: int | None, seed: int) -> list[Selection]:
    """The selected rows of each source, or only `sample` of them all together."""
    selections = [Selection(source) for source in sources]
    if sample and sources:
        for selection, numbers in zip(selections, sampled(list(map(len, selections)), sample, seed), strict=True):
            selection.sample(numbers)
    return selections


class _Progress:
    """Rows done over all sources."""

    def __init__(self, progress: Progress, total_rows: int) -> None:
        self._progress = progress
        self._total_rows = total_rows
        self._done_rows = 0

    def add(self, rows: int) -> None:
        self._done_rows += rows
        self._progress(self._done_rows, self._total_rows)


@dataclass(frozen=True)
class _Tables:
    """Makes the rows of sources a table on disk, below `folder`."""

    spec: JobSpec
    pool: Pool
    job: wire.Job
    folder: Path
    done: _Progress

    def made_of(self, asked: Asked) -> tuple[Table, Table | None, Table | None, Table | None]:
        """One for each of the four; general rows have one answer, whatever the method."""
        columns = METHODS[self.spec.training.method].columns
        return (
            self.tokenise(asked.train, "train", "/data/train", columns),
            self.tokenise(asked.held_out, "held_out", "/data/held_out/sources", columns) if asked.held_out else None,
            self.tokenise(asked.replay, "replay", REPLAY, TOKENS) if asked.replay else None,
            self.tokenise(asked.general, "general", FORGETTING, TOKENS) if asked.general else None,
        )

    def tokenise(self, selections: list[Selection], name: str, pointer: str, columns: Sequence[str]) -> Table:
        with Table(self.folder / f"{name}.arrow", columns) as table:
            for index, selection in enumerate(selections):
                source = selection.description(self.spec.data.chat_template == "alpaca")
                request = wire.Request("rows", self.job, source=source)
                requests = ((batch, wire.with_rows(request, rows)) for batch, rows in selection.batches())
                with contextlib.closing(self.pool.map(requests)) as replies:
                    for batch, reply, body in replies:
                        table.add(index, selection.pointer, batch, reply, body)
                        self.done.add(len(batch))
        table.require_useful(pointer, self.spec.data.max_untrained_fraction, self.spec.model.max_seq_length)
        return table


def _exact_match(
    spec: JobSpec, pool: Pool, job: wire.Job, selections: list[Selection], part: Part | None, count: int
) -> list[Question]:
    if part is None or not count:
        return []
    evaluation = spec.evaluation
    request = wire.Request("questions", job, choices=evaluation.choices or (), choices_column=evaluation.choices_column)
    return ask_rows(pool, request, selections, spec.data.chat_template == "alpaca", part.rows, count)
