"""Tokenised rows on disk: an Arrow stream that is memory-mapped later, and a few figures per sequence in memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from job.data.sources import SelectedRow
from job.data.worker import wire
from job.errors import Fault, InputError
from job.training.methods.record import TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FAULTS = 10
SHOWN_ROWS = 5  # that are dropped or cut, by their places
MOST_CHARACTERS = 1000  # of a reason, which may quote the row


class Table:
    """Sequences of all sources of a split in file order.

    After writing, one entry per sequence, or pair of them: `rows` (number of the row it came from, over all sources;
    int64), `lengths`, `longest` (of a pair the longer one) and `trained` (tokens; int32), `truncated` (bool), `digests`
    (of ids and labels; uint64). `row_source`: index of the source of each row, by row number. `columns` are those of
    the data set, ids and labels in turn.
    """

    rows: NDArray[Any]
    lengths: NDArray[Any]
    longest: NDArray[Any]
    trained: NDArray[Any]
    truncated: NDArray[Any]
    digests: NDArray[Any]
    row_source: NDArray[Any]

    def __init__(self, path: Path, columns: Sequence[str] = TOKENS) -> None:
        import pyarrow as pa

        self.path = path
        self.read_rows = 0
        self.dropped_rows = 0
        self.dropped_reasons: Counter[str] = Counter()
        self.dropped_places: dict[str, list[str]] = {}  # of the first rows with each reason
        self.truncated_examples: list[str] = []
        self.remarks: Counter[str] = Counter()  # what was in rows and is not learned as it was there, by kind
        self.beyond_tokens = 0  # of the longest row whose answer is beyond the longest sequence
        self._columns = {
            "rows": array("q"),
            "lengths": array("i"),
            "longest": array("i"),
            "trained": array("i"),
            "truncated": array("b"),
            "digests": array("Q"),
        }
        self._row_source = array("h")
        self._faults: list[Fault] = []
        self._schema = pa.schema([(name, pa.list_(pa.int32())) for name in columns])
        self._writer: Any = None

    def __enter__(self) -> Self:
        import pyarrow as pa

        self._writer = pa.ipc.new_stream(self.path, self._schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import numpy as np

        self._writer.close()
        types = {"rows": "int64", "truncated": "bool", "digests": "uint64"}
        types |= dict.fromkeys(("lengths", "longest", "trained"), "int32")
        for name, values in self._columns.items():
            setattr(self, name, np.frombuffer(values, dtype=types[name]) if values else np.empty(0, types[name]))
        self.row_source = np.array(self._row_source)
        if error is None:
            self._raise_faults()

    def add(self, source: int, pointer: str, batch: list[SelectedRow], reply: wire.Reply, body: bytes) -> None:
        """A worker's reply to a batch of rows. Raises `InputError` when enough rows are found faulty."""
        for index, reason, where in reply.faults:
            self._faults.append(Fault(f"{batch[index].place}: {reason[:MOST_CHARACTERS]}", where=where or pointer))
        if len(self._faults) >= MAX_FAULTS:
            self._raise_faults()
        for index, reason, tokens in reply.dropped:
            self.dropped_reasons[reason] += 1
            if reason == wire.BEYOND:
                self.beyond_tokens = max(self.beyond_tokens, tokens)
            places = self.dropped_places.setdefault(reason, [])
            if len(places) < SHOWN_ROWS:
                places.append(batch[index].place)
        self.remarks.update(reply.remarks)
        self.dropped_rows += len(reply.dropped)
        for index, lengths, trained, truncated, digest, _ in reply.sequences:
            figures = (self.read_rows + index, sum(lengths), max(lengths), trained, truncated, digest)
            for column, value in zip(self._columns.values(), figures, strict=True):
                column.append(value)
            if truncated and len(self.truncated_examples) < SHOWN_ROWS:
                self.truncated_examples.append(batch[index].place)
        self.read_rows += len(batch)
        self._row_source.extend([source] * len(batch))
        further = [[count] for *_, count in reply.sequences]
        self._write([lengths for _, lengths, *_ in reply.sequences], further, body)

    def _write(self, lengths: list[list[int]], further: list[list[int]], body: bytes) -> None:
        """`body`: for each sequence (of a pair, one after the other) its ids, then its labels, then so many numbers of
        the `further` column, which pairs have not, int32.
        """
        import numpy as np
        import pyarrow as pa

        if not lengths:
            return
        each = np.repeat(np.array(lengths), 2, axis=1)  # ids and labels are of one length
        each = np.concatenate([each, np.array(further)], axis=1)[:, : len(self._schema)]
        column_of = np.repeat(np.tile(np.arange(each.shape[1]), len(each)), each.ravel())
        tokens = np.frombuffer(body, dtype=np.int32)
        columns = [
            pa.ListArray.from_arrays(
                pa.array([0, *np.cumsum(found)], pa.int32()), pa.array(tokens[column_of == number])
            )
            for number, found in enumerate(each.T)
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def _raise_faults(self) -> None:
        if self._faults:
            count = len(self._faults)
            more = (
                f"{count} rows cannot be used; the search stopped there"
                if count >= MAX_FAULTS
                else f"{count} rows cannot be used"
            )
            raise InputError(*self._faults[:MAX_FAULTS], Fault(more, where=self._faults[0].where))

    def require_useful(self, pointer: str, max_untrained_fraction: float, max_seq_length: int) -> None:
        """Raises `InputError` if no row, or too small a part of them, has a token to learn."""
        examples = "; ".join(f"{', '.join(places)}: {reason}" for reason, places in self.dropped_places.items())
        hint = f"model.max_seq_length is {max_seq_length}"
        if self.beyond_tokens:
            hint += f"; {self.beyond_tokens} would hold each of these rows"
        if not len(self.rows):
            raise InputError(
                f"no row has a token to learn: {examples}",
                where=pointer,
                found=f"{self.dropped_rows} rows",
                expected="at least 1",
                hint=hint,
            )
        marked = self.dropped_reasons[wire.MARKED]  # as their author wants it
        share = (self.dropped_rows - marked) / (self.read_rows - marked)
        if share > max_untrained_fraction:
            raise InputError(
                f"too many rows have no token to learn: {examples}",
                where="/data/max_untrained_fraction",
                found=f"{self.dropped_rows - marked} of {self.read_rows - marked} rows",
                expected=f"at most {max_untrained_fraction:g} of them",
                hint=hint
                if self.beyond_tokens
                else "Complete these rows, leave them out, or let more of them be left out",
            )

    def dataset(self, sequences: NDArray[Any]) -> Any:
        """The given sequences in the given order as a memory-mapped `datasets.Dataset` of the columns."""
        from datasets import Dataset

        return Dataset.from_file(str(self.path)).select(sequences)

    def sequences_of(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Indices of the sequences of the given rows, row by row in the given order; a row may be given repeatedly."""
        import numpy as np

        first, last = np.searchsorted(self.rows, rows, "left"), np.searchsorted(self.rows, rows, "right")
        counts = last - first
        starts = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        return starts + np.arange(counts.sum())
