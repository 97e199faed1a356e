"""Rows → conversations → token ids with labels: the data half of a job, from fetched files to datasets."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.data.chat import set_chat_template
from job.data.figures import DataReport, figures, shared
from job.data.notes import row_notes
from job.data.pool import Pool
from job.data.probes import TemplateProbe, ask_probes
from job.data.questions import Question, ask_prompts, ask_rows
from job.data.references import reference_notes
from job.data.select import sampled
from job.data.sources import Selection
from job.data.split import Part, split
from job.data.table import Table
from job.data.tokenizer import load_tokenizer, own_end_ids, set_pad_token, write_tokenizer
from job.data.worker import wire
from job.host.cgroup import worker_count
from job.training.methods import METHODS

if TYPE_CHECKING:
    from job.source import FetchedSource
    from job.spec import JobSpec

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
    it, for those who must write it in another language.
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


def build_dataset(
    spec: JobSpec,
    train: list[FetchedSource],
    held_out: list[FetchedSource] | None,
    model_dir: Path,
    workdir: Path,
    progress: Progress,
    sample: int | None = None,
) -> Prepared:
    """Reads, renders, masks and tokenises every row; `progress(rows done, rows in all)` is called as it goes. With
    `sample`, only so many rows of the training sources and of the held-out sources, drawn by the seed.

    Writes Arrow files and the tokenizer under `workdir`/data. Raises `InputError` for files, rows and templates that
    do not fit, `PolicyError` for templates that the sandbox refuses, `CapacityError` if memory runs out.
    """
    selections = select(train, sample, spec.training.seed)
    own_selections = select(held_out or [], sample, spec.training.seed)
    chats = [selection.check_columns() for selection in selections + own_selections]
    tokenizer = load_tokenizer(model_dir)
    end_ids = own_end_ids(tokenizer, model_dir)
    folder = workdir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    notes = [remark for selection in selections + own_selections for remark in selection.remarks()]
    set_pad_token(tokenizer, model_dir, notes)
    with Pool(write_tokenizer(tokenizer, folder / "tokenizer.json"), worker_count()) as pool:
        job = set_chat_template(spec, tokenizer, any(chats), pool, notes)
        done = _Progress(progress, sum(map(len, selections + own_selections)))
        probes = ask_probes(pool, job)
        questions = ask_prompts(pool, job, spec.evaluation.prompts)
        table = _tokenise(spec, pool, job, selections, folder / "train.arrow", "/data/train", done)
        own = (
            _tokenise(spec, pool, job, own_selections, folder / "held_out.arrow", "/data/held_out/sources", done)
            if held_out
            else None
        )
        training, kept_out, words = split(spec, table, own, notes)
        count = spec.evaluation.exact_match_rows if kept_out else 0
        exact_match = _exact_match(spec, pool, job, own_selections if held_out else selections, kept_out, count)
    notes += [note for selection in selections + own_selections for note in selection.column_notes()]
    notes += reference_notes(spec.evaluation, exact_match)
    notes += row_notes([table, *([own] if own else [])], spec.model.max_seq_length)
    return Prepared(
        digest=hashlib.sha256(table.digests[training.sequences].tobytes()).hexdigest(),
        train=table.dataset(training.sequences),
        held_out=kept_out.table.dataset(kept_out.sequences) if kept_out else None,
        tokenizer=tokenizer,
        template=job.chat_template,
        probes=probes,
        questions=questions,
        exact_match=exact_match,
        report=DataReport(
            train=figures(training),
            held_out=figures(kept_out) | {"also_trained": shared(kept_out, training)} if kept_out else None,
            held_out_words=words,
            stop_token_ids=list(dict.fromkeys([*([] if job.eos_id is None else [job.eos_id]), *end_ids])),
            notes=notes,
        ),
    )


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


def _tokenise(
    spec: JobSpec, pool: Pool, job: wire.Job, selections: list[Selection], path: Path, pointer: str, done: _Progress
) -> Table:
    """All rows of a split's sources as a table on disk."""
    with Table(path, METHODS[spec.training.method].columns) as table:
        for index, selection in enumerate(selections):
            request = wire.Request("rows", job, source=selection.description(spec.data.chat_template == "alpaca"))
            requests = ((batch, wire.with_rows(request, rows)) for batch, rows in selection.batches())
            with contextlib.closing(pool.map(requests)) as replies:
                for batch, reply, body in replies:
                    table.add(index, selection.pointer, batch, reply, body)
                    done.add(len(batch))
    table.require_useful(pointer, spec.data.max_untrained_fraction, spec.model.max_seq_length)
    return table


def _exact_match(
    spec: JobSpec, pool: Pool, job: wire.Job, selections: list[Selection], part: Part | None, count: int
) -> list[Question]:
    if part is None or not count:
        return []
    choices = spec.evaluation.choices or ()
    return ask_rows(pool, job, selections, spec.data.chat_template == "alpaca", part.rows, count, choices)
