"""A few training samples for people to read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from job.data.build import Prepared
from job.data.worker.wire import IGNORED

LEARNED = ("⟦", "⟧")
REJECTED = "rejected_input_ids"  # of a pair
LABEL = "desirable"  # of an answer with a label
TABLE_TOKENS = 400
SAMPLE_CHARACTERS = 1500


def write_samples(prepared: Prepared, folder: Path, learns: bool = True, count: int = 3) -> Path:
    """`samples.md`: the first training sequences with their learned parts in ⟦ ⟧, then token by token. `samples.json`
    has the same as runs of learned and other text.
    """
    lines = [
        "# Training samples",
        "",
        f"{marked_words(learns)} In the tables it has `+`.",
        "",
    ]
    for index in range(min(count, len(prepared.train))):
        row, (head, text) = prepared.train[index], sample(prepared, index, learns)
        fence = "`" * (3 + max((len(run) for run in re.findall("`+", text)), default=0))
        lines += [f"## {head}", "", f"{fence}text", text, fence, ""]
        lines += _token_table(prepared.tokenizer, row["input_ids"], row["labels"])
        if REJECTED in row:
            lines += ["The rejected answer:", ""]
            lines += _token_table(prepared.tokenizer, row[REJECTED], row["rejected_labels"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.md"
    path.write_text("\n".join(lines), "utf-8")
    found = [document(prepared, index) for index in range(min(count, len(prepared.train)))]
    (folder / "samples.json").write_text(json.dumps(found, ensure_ascii=False) + "\n", "utf-8")
    return path


def document(prepared: Prepared, index: int) -> dict[str, Any]:
    """A training sequence as {"tokens": 7, "learned": 3, "runs": [[false, "question"], [true, "answer"]]}."""
    row = prepared.train[index]
    found = runs(prepared.tokenizer, row["input_ids"], row["labels"])
    learned = sum(label != IGNORED for label in row["labels"])
    return {"tokens": len(row["input_ids"]), "learned": learned, "runs": [list(run) for run in found]}


def marked_words(learns: bool) -> str:
    """What is between the marks."""
    between = f"between {LEARNED[0]} and {LEARNED[1]}"
    if learns:
        return f"The model learns what is {between}."
    return f"What is {between} is not learned: the model's own answers are compared with it."


def sample(prepared: Prepared, index: int, learns: bool = True) -> tuple[str, str]:
    """A head line for a training sequence, and its text with the learned parts marked."""
    row = prepared.train[index]
    ids, labels = row["input_ids"], row["labels"]
    learned = sum(label != IGNORED for label in labels)
    parts = runs(prepared.tokenizer, ids, labels)
    text = "".join(f"{LEARNED[0]}{part}{LEARNED[1]}" if learns else part for learns, part in parts)
    if REJECTED in row:
        answer = [label for label in row["rejected_labels"] if label != IGNORED]
        text += f"\nrejected: {LEARNED[0]}{prepared.tokenizer.decode(answer)}{LEARNED[1]}"
    head = f"Sample {index + 1}: {len(ids)} tokens, {learned} {'learned' if learns else 'of the reference'}"
    if LABEL in row:
        head += ", to become likelier" if row[LABEL][0] else ", to become less likely"
    return head, text


def first_samples(prepared: Prepared, learns: bool = True, count: int = 3) -> tuple[str, ...]:
    """The first of them for a terminal: each with its head line, and not at any length."""
    shown = []
    for index in range(min(count, len(prepared.train))):
        head, text = sample(prepared, index, learns)
        shown.append(f"{head}\n{text if len(text) <= SAMPLE_CHARACTERS else f'{text[:SAMPLE_CHARACTERS]}…'}")
    return tuple(shown)


def runs(tokenizer: Any, ids: list[int], labels: list[int]) -> list[tuple[bool, str]]:
    """The decoded sequence in parts: whether each is learned, and its text."""
    found: list[tuple[bool, list[int]]] = []
    for token, label in zip(ids, labels, strict=True):
        learned = label != IGNORED
        if not found or found[-1][0] != learned:
            found.append((learned, []))
        found[-1][1].append(token)
    return [(learned, tokenizer.decode(run)) for learned, run in found]


def _token_table(tokenizer: Any, ids: list[int], labels: list[int]) -> list[str]:
    lines = ["| | id | token |", "|---|---|---|"]
    for token, label in list(zip(ids, labels, strict=True))[:TABLE_TOKENS]:
        text = repr(tokenizer.decode([token]))[1:-1].replace("|", "\\|").replace("`", "'")
        lines.append(f"| {'+' if label != IGNORED else ''} | {token} | `{text}` |")
    hidden = len(ids) - TABLE_TOKENS
    return [*lines, *([f"| | | {hidden} more |"] if hidden > 0 else []), ""]
