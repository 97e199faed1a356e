"""General rows among those of the task, so that less is forgotten; and which of both are trained on in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from job.data.figures import figures
from job.data.select import mixed, weighted
from job.data.split import Part
from job.data.table import Table
from job.errors import InputError
from job.spec import JobSpec

DRAWN = 64  # a random stream of its own, beside those of the training sources' weights, of which there are 64


@dataclass(frozen=True)
class TrainedRows:
    """What is trained on in its order, the SHA-256 over its sequences, and the figures of the general rows in it."""

    dataset: Any
    digest: str
    replay: dict[str, Any] | None


def trained_on(
    spec: JobSpec, training: Part, general: Table | None, measured: Sequence[Part], notes: list[str]
) -> TrainedRows:
    """The task's sequences, and so many of the `general` ones that they are `data.replay.fraction` of all, drawn by
    the seed; where there are fewer, they repeat. Copies of what is `measured` stay out. Raises `InputError` if none is
    left.
    """
    import numpy as np

    own = training.table.dataset(training.sequences)
    digests = training.table.digests[training.sequences]
    if general is None or spec.data.replay is None:
        return TrainedRows(own, hashlib.sha256(digests.tobytes()).hexdigest(), None)
    from datasets import concatenate_datasets

    part = _drawn(spec, len(own), general, measured, notes)
    order = mixed(len(own) + len(part.sequences), spec.training.seed)
    digests = np.concatenate([digests, general.digests[part.sequences]])[order]
    both = concatenate_datasets([own, general.dataset(part.sequences)]).select(order)
    return TrainedRows(both, hashlib.sha256(digests.tobytes()).hexdigest(), figures(part))


def _drawn(spec: JobSpec, own: int, general: Table, measured: Sequence[Part], notes: list[str]) -> Part:
    import numpy as np

    fraction = spec.data.replay.fraction if spec.data.replay else 0.0
    known = np.concatenate([part.table.digests[part.sequences] for part in measured] or [general.digests[:0]])
    copies = np.unique(general.rows[np.isin(general.digests, known)])
    rows = np.setdiff1d(general.rows, copies)
    if not len(rows):
        raise InputError("no general rows are left to train on", where="/data/replay",
                         found=f"{len(copies)} rows, all copies of rows that are measured",
                         expected="other rows")  # fmt: skip
    if len(copies):
        notes.append(f"{len(copies)} general rows are not mixed in: exact copies of rows that are measured")
    sequences = general.sequences_of(rows)
    wanted = max(1, round(fraction / (1 - fraction) * own))
    drawn = weighted(sequences, wanted / len(sequences), spec.training.seed, DRAWN)
    notes.append(
        f"{len(drawn)} of the {own + len(drawn)} training sequences of an epoch are general ones (data.replay)"
        + (f": {len(sequences)} different ones, repeated" if len(drawn) > len(sequences) else "")
    )
    return Part(general, np.unique(general.rows[drawn]), drawn)
