"""Which tokenised rows are trained on and which are held out, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from job.data.select import choose_held_out, shuffled, weighted
from job.errors import Fault, InputError

if TYPE_CHECKING:
    from job.data.select import Index
    from job.data.table import Table
    from job.spec import JobSpec


@dataclass(frozen=True)
class Part:
    """Row numbers of a table, and the sequences of one epoch in the order of training."""

    table: Table
    rows: Index
    sequences: Index


def split(spec: JobSpec, table: Table, own: Table | None, notes: list[str]) -> tuple[Part, Part | None]:
    """(train, held-out) by `data.held_out`; `own` is the table of held-out sources, if the spec names any.

    A row that is drawn as held-out takes its exact copies out of the training rows. Sources of their own are left as
    they are; rows that both sides hold are counted in `notes`. Raises `InputError` if nothing is left to train on.
    """
    import numpy as np

    rows = np.unique(table.rows)
    if own is not None:
        shared = int(np.isin(own.digests, table.digests).sum())
        if shared:
            notes.append(f"{shared} of {len(own.digests)} held-out sequences are also in the training data")
        held_out: Part | None = _in_order(own, np.unique(own.rows))
    elif spec.data.held_out is not None:
        rows, chosen = choose_held_out(spec.data.held_out, rows, spec.training.seed)
        rows = _without_copies(table, rows, chosen, notes)
        held_out = _in_order(table, chosen)
    else:
        held_out = None
    return Part(table, rows, _training_order(spec, table, rows)), held_out


def _in_order(table: Table, rows: Index) -> Part:
    return Part(table, rows, table.sequences_of(rows))


def _without_copies(table: Table, rows: Index, held_out: Index, notes: list[str]) -> Index:
    import numpy as np

    digests = table.digests[np.isin(table.rows, held_out)]
    copies = table.rows[np.isin(table.digests, digests)]
    kept = rows[~np.isin(rows, copies)]
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} training rows left out: exact copies of held-out rows")
    if not len(kept):
        found = f"{len(rows)} rows, all copies of held-out rows"
        raise InputError(
            Fault("no rows are left to train on", where="/data/held_out", found=found, expected="other rows")
        )
    return kept


def _training_order(spec: JobSpec, table: Table, rows: Index) -> Index:
    """Sequences by weight, then shuffled as a whole so that pieces of a long document do not follow each other."""
    import numpy as np

    seed = spec.training.seed
    parts = [
        weighted(rows[table.row_source[rows] == i], source.weight, seed, i) for i, source in enumerate(spec.data.train)
    ]
    sequences = table.sequences_of(np.concatenate(parts))
    if not len(sequences):
        raise InputError(
            Fault(
                "no rows are left to train on",
                where="/data/train/0/weight",
                found="weights that round to no row",
                expected="larger weights",
            )
        )
    return shuffled(sequences, seed) if spec.data.shuffle else sequences
