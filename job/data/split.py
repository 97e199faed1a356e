"""Which tokenised rows are trained on and which are held out, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from job.data.select import FROM_ROWS, choose_held_out, default_held_out, shuffled, weighted
from job.errors import InputError
from job.spec import HeldOutSpec
from job.spec.evaluation_rules import needs_held_out

if TYPE_CHECKING:
    from job.data.select import Index
    from job.data.table import Table
    from job.spec import JobSpec

UNMEASURED = "nothing is measured on rows that are not trained on"


@dataclass(frozen=True)
class Part:
    """Row numbers of a table, and the sequences of one epoch in the order of training."""

    table: Table
    rows: Index
    sequences: Index


def split(spec: JobSpec, table: Table, own: Table | None, notes: list[str]) -> tuple[Part, Part | None, str]:
    """(train, held-out, in words which rows are held out) by `data.held_out`; `own` is the table of held-out sources,
    if the spec names any.

    A row that is drawn as held-out takes its exact copies out of the training rows. Sources of their own are left as
    they are; rows that both sides hold are counted in `notes`. Raises `InputError` if nothing is left to train on, or
    nothing is held out and the spec needs it.
    """
    import numpy as np

    rows = np.unique(table.rows)
    if own is not None:
        shared = int(np.isin(own.digests, table.digests).sum())
        if shared:
            notes.append(f"{shared} of {len(own.digests)} held-out sequences are also in the training data")
        held_out = in_order(own)
        return _part(spec, table, rows), held_out, f"{len(held_out.rows)} rows of data.held_out.sources are held out"
    asked, drawn_from = spec.data.held_out, rows
    if asked == "auto":
        drawn_from = _different(table, rows)
        count = default_held_out(len(drawn_from))
        asked = HeldOutSpec(None, count, None) if count else False
    if not isinstance(asked, HeldOutSpec):
        return _part(spec, table, rows), None, _nothing_held_out(spec, len(drawn_from), notes)
    _, chosen = choose_held_out(asked, drawn_from, spec.training.seed)
    left = _without_copies(table, np.setdiff1d(rows, chosen), chosen, notes)
    by_default = " by default" if spec.data.held_out == "auto" else ""
    words = f"{len(chosen)} of {len(rows)} rows are held out{by_default}, drawn by training.seed {spec.training.seed}"
    notes += [words] if by_default else []
    return _part(spec, table, left), in_order(table, chosen), words


def _different(table: Table, rows: Index) -> Index:
    """The first of those rows that begin with the same sequence, in their order."""
    import numpy as np

    begins = table.digests[np.searchsorted(table.rows, rows)]
    return rows[np.sort(np.unique(begins, return_index=True)[1])]


def _nothing_held_out(spec: JobSpec, different_rows: int, notes: list[str]) -> str:
    """Why, in words. Raises `InputError` where the default finds too few rows and the spec needs some."""
    if spec.data.held_out is False:
        return f"no rows are held out, as data.held_out is false: {UNMEASURED}"
    why = f"no rows are held out by default: {different_rows} different rows are fewer than {FROM_ROWS}"
    wanted = list(needs_held_out(spec.resolved | {"data": spec.resolved["data"] | {"held_out": False}}))
    if wanted:
        hint = f"{why}; say in data.held_out how many are to be"
        raise InputError(*(replace(fault, expected="held-out rows", hint=hint) for fault in wanted))
    notes.append(f"{why}; {UNMEASURED}")
    return notes[-1]


def _part(spec: JobSpec, table: Table, rows: Index) -> Part:
    return Part(table, rows, _training_order(spec, table, rows))


def in_order(table: Table, rows: Index | None = None) -> Part:
    """Those rows, or all, once each."""
    import numpy as np

    rows = np.unique(table.rows) if rows is None else rows
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
        raise InputError("no rows are left to train on", where="/data/held_out", found=found, expected="other rows")
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
            "no rows are left to train on",
            where="/data/train/0/weight",
            found="weights that round to no row",
            expected="larger weights",
        )
    return shuffled(sequences, seed) if spec.data.shuffle else sequences
