"""What became of the rows: figures for stats.json and a few samples for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from job.data.worker.wire import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from job.data.split import Part

AT_ONCE = 10_000  # sequences


@dataclass(frozen=True)
class DataReport:
    """Figures per split as plain dicts (`replay`: general rows that are trained on beside those of `train`; `general`:
    those that are measured), in words which rows are held out, the ids that end an answer, and notes on what
    the vocabulary made necessary.
    """

    train: dict[str, Any]
    held_out: dict[str, Any] | None
    replay: dict[str, Any] | None
    general: dict[str, Any] | None
    held_out_words: str
    stop_token_ids: list[int]
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """The whole report for stats.json."""
        return dict(vars(self))

    def totals(self) -> dict[str, int]:
        """The figures of one log line."""
        keys = ("rows", "sequences", "tokens", "trained_tokens", "truncated_rows", "dropped_rows", "duplicate_rows")
        splits = {"held_out_rows": self.held_out, "replay_rows": self.replay, "general_rows": self.general}
        return {key: self.train[key] for key in keys} | {name: split["rows"] for name, split in splits.items() if split}


def figures(part: Part) -> dict[str, Any]:
    """A split's figures: of its rows, and of the sequences that one epoch sees, repeats by weight included.

    A pair counts as one sequence; its tokens are those of both, but `longest_tokens` are of one. `read_rows` and
    `dropped_…` count the files, which train and held-out may share.
    """
    import numpy as np

    table, rows, sequences = part.table, part.rows, part.sequences
    digests = table.digests[np.isin(table.rows, rows)]
    lengths = table.lengths[sequences]
    return {
        "read_rows": table.read_rows,
        "dropped_rows": table.dropped_rows,
        "dropped_reasons": dict(table.dropped_reasons),
        "dropped_examples": [
            f"{place}: {reason}" for reason, places in table.dropped_places.items() for place in places
        ],
        "rows": len(rows),
        "sequences": len(sequences),
        "tokens": int(lengths.sum()),
        "trained_tokens": int(table.trained[sequences].sum()),
        "truncated_rows": int(np.isin(rows, table.rows[table.truncated]).sum()),
        "truncated_examples": table.truncated_examples,
        "duplicate_rows": len(digests) - len(np.unique(digests)),
        "longest_tokens": int(table.longest[sequences].max()),
        "lengths": histogram(lengths),
    }


def shared(held_out: Part, train: Part) -> int:
    """How many held-out sequences are trained on as well."""
    import numpy as np

    return int(np.isin(held_out.table.digests[held_out.sequences], train.table.digests[train.sequences]).sum())


def histogram(lengths: NDArray[Any]) -> dict[str, int]:
    """Sequences by length in tokens: {"<=64": 3, "<=128": 9, …}, each bucket twice as wide as the one before."""
    import numpy as np

    powers = np.maximum(np.ceil(np.log2(np.maximum(lengths, 1))), 4).astype(int)
    values, counts = np.unique(powers, return_counts=True)
    return {f"<={1 << int(power)}": int(count) for power, count in zip(values, counts, strict=True)}


def sizes(dataset: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Tokens of each sequence, or pair of them, and how many of them are learned."""
    import numpy as np
    import pyarrow.compute as pc

    lengths, trained = [], []
    for batch in dataset.with_format("arrow").iter(AT_ONCE):
        tokens, learned = np.zeros(len(batch), np.int64), np.zeros(len(batch), np.int64)
        for name in (name for name in batch.column_names if name.endswith("labels")):
            counts = pc.list_value_length(batch[name]).to_numpy()
            is_learned = pc.list_flatten(batch[name]).to_numpy() != IGNORED
            tokens += counts
            learned += np.add.reduceat(is_learned, np.cumsum(counts) - counts, dtype=np.int64)
        lengths.append(tokens)
        trained.append(learned)
    return np.concatenate(lengths), np.concatenate(trained)
