"""What became of the rows: figures for stats.json and a few samples for people to read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.data.worker.tokenise import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from job.data.build import Prepared
    from job.data.split import Part

LEARNED = ("⟦", "⟧")
TABLE_TOKENS = 400


@dataclass(frozen=True)
class DataReport:
    """Figures per split as plain dicts, the ids that end an answer, and notes on what the vocabulary made necessary."""

    train: dict[str, Any]
    held_out: dict[str, Any] | None
    stop_token_ids: list[int]
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """The whole report for stats.json."""
        return {"train": self.train, "held_out": self.held_out, "stop_token_ids": self.stop_token_ids, "notes": self.notes}

    def totals(self) -> dict[str, int]:
        """The figures of one log line."""
        keys = ("rows", "sequences", "tokens", "trained_tokens", "truncated_rows", "dropped_rows", "duplicate_rows")
        held_out = {"held_out_rows": self.held_out["rows"]} if self.held_out else {}
        return {key: self.train[key] for key in keys} | held_out


def figures(part: Part) -> dict[str, Any]:
    """A split's figures: of its rows, and of the sequences that one epoch sees, repeats by weight included.

    `read_rows` and `dropped_…` count the files, which train and held-out may share.
    """
    import numpy as np

    table, rows, sequences = part.table, part.rows, part.sequences
    digests = table.digests[np.isin(table.rows, rows)]
    lengths = table.lengths[sequences]
    return {
        "read_rows": table.read_rows,
        "dropped_rows": table.dropped_rows,
        "dropped_reasons": dict(table.dropped_reasons),
        "rows": len(rows),
        "sequences": len(sequences),
        "tokens": int(lengths.sum()),
        "trained_tokens": int(table.trained[sequences].sum()),
        "truncated_rows": int(np.isin(rows, table.rows[table.truncated]).sum()),
        "duplicate_rows": len(digests) - len(np.unique(digests)),
        "longest_tokens": int(lengths.max()),
        "lengths": histogram(lengths),
    }


def histogram(lengths: NDArray[Any]) -> dict[str, int]:
    """Sequences by length in tokens: {"<=64": 3, "<=128": 9, …}, each bucket twice as wide as the one before."""
    import numpy as np

    powers = np.maximum(np.ceil(np.log2(np.maximum(lengths, 1))), 4).astype(int)
    values, counts = np.unique(powers, return_counts=True)
    return {f"<={1 << int(power)}": int(count) for power, count in zip(values, counts, strict=True)}


def write_samples(prepared: Prepared, folder: Path, count: int = 3) -> Path:
    """`samples.md`: the first training sequences with their learned parts in ⟦ ⟧, then token by token."""
    lines = ["# Training samples", "", f"Learned parts stand between {LEARNED[0]} and {LEARNED[1]}. In the tables, `+` is learned.", ""]
    for index in range(min(count, len(prepared.train))):
        row = prepared.train[index]
        ids, labels = row["input_ids"], row["labels"]
        learned = sum(label != IGNORED for label in labels)
        text = marked_text(prepared.tokenizer, ids, labels)
        fence = "`" * (3 + max((len(run) for run in re.findall("`+", text)), default=0))
        lines += [f"## Sample {index + 1}: {len(ids)} tokens, {learned} learned", "", f"{fence}text", text, fence, ""]
        lines += _token_table(prepared.tokenizer, ids, labels)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.md"
    path.write_text("\n".join(lines), "utf-8")
    return path


def marked_text(tokenizer: Any, ids: list[int], labels: list[int]) -> str:
    """The decoded sequence with its learned runs between ⟦ and ⟧."""
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(ids, labels, strict=True):
        learned = label != IGNORED
        if not runs or runs[-1][0] != learned:
            runs.append((learned, []))
        runs[-1][1].append(token)
    texts = [(learned, tokenizer.decode(run)) for learned, run in runs]
    return "".join(f"{LEARNED[0]}{text}{LEARNED[1]}" if learned else text for learned, text in texts)


def _token_table(tokenizer: Any, ids: list[int], labels: list[int]) -> list[str]:
    lines = ["| | id | token |", "|---|---|---|"]
    for token, label in list(zip(ids, labels, strict=True))[:TABLE_TOKENS]:
        text = repr(tokenizer.decode([token]))[1:-1].replace("|", "\\|").replace("`", "'")
        lines.append(f"| {'+' if label != IGNORED else ''} | {token} | `{text}` |")
    hidden = len(ids) - TABLE_TOKENS
    return [*lines, *([f"| | | {hidden} more |"] if hidden > 0 else []), ""]
