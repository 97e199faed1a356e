"""What is said of rows of which something was left out, in sentences with counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from job.data.table import Table
from job.data.worker import wire
from job.training.methods.record import LABELLED

SHOWN = 10  # names of keys and tokens, the most frequent first
SENTENCES = {
    "tools": "the chat template leaves out the tool definitions of {} rows",
    "reasoning": "the chat template leaves the reasoning of {} answers out: it is not learned",
    "asked": "before {} answers the rows have another text than the one with which the chat template asks for answers, "
    "such as a <think> that it opens: the model will be asked otherwise than it is trained",
    "unknown": "{} rows have characters that the vocabulary lacks: the model reads its token for the unknown instead",
    "text": "the chat template changes the text of {} answers, or leaves a part of it out",
    "apart": "prompt and completion of {} rows would share a token if they were one text; the prompt is tokenised by "
    "itself, as at inference",
    "merged": "{} answers begin within a token that also holds the end of the text before them, which is tokenised "
    "otherwise at inference; prompts are best without white space at their end",
    "empty": "{} answers are empty and not learned; the other answers of these conversations are",
    "spaced": "chosen and rejected of {} rows differ in white space alone: that is what is learned of them",
    "desirable": "{} answers are called good",
    "undesirable": "{} answers are called bad",
    "weighted": "{} messages are learned in part, by their weight",
    "wished": "{} messages are marked to be learned but are not answers; train_on responses learns answers alone",
}


def row_notes(tables: Sequence[Table], max_seq_length: int) -> list[str]:
    """The remarks on all tables' rows."""
    remarks = sum((table.remarks for table in tables), Counter[str]())
    notes = [sentence.format(remarks[kind]) for kind, sentence in SENTENCES.items() if remarks[kind]]
    if rows := sum(table.dropped_reasons[wire.MARKED] for table in tables):
        notes.append(f"{rows} rows are marked not to be learned and left out")
    notes += _left_out(tables)
    if marks := _names(remarks, "mark "):
        notes.append(f"rows have values other than 0 and 1, false and true in these columns, and are learned: {marks}")
    if roles := _names(remarks, "role "):
        notes.append(f"the chat template changes the text of messages, or leaves it out, of these roles: {roles}")
    if keys := _names(remarks, "key "):
        notes.append(f"keys of messages, calls and tools that nothing reads: {keys}")
    if tokens := _names(remarks, "token "):
        notes.append(
            f"the text of {remarks['control']} rows holds control tokens of the vocabulary, which the model reads as "
            f"such: {tokens}"
        )
    if rows := sum(table.dropped_reasons[wire.BEYOND] for table in tables):
        longest = max(table.beyond_tokens for table in tables)
        notes.append(
            f"the answers of {rows} rows are beyond model.max_seq_length {max_seq_length}; {longest} would hold them"
        )
    return notes


def label_notes(train: Any, held_out: Any) -> list[str]:
    """On prepared rows that are called good or bad, and all the same."""
    notes = []
    if kind := _only_kind(train):
        likelier = "likelier" if kind == "good" else "less likely"
        notes.append(
            f"all {len(train)} answers that are trained on are called {kind}: every answer is made {likelier}, and "
            "none is preferred to another, as that needs both kinds"
        )
    if kind := _only_kind(held_out):
        notes.append(
            f"all {len(held_out)} held-out answers are called {kind}: which ones the model prefers is not measured, as "
            "that needs both kinds; hold out more rows, or name some of each in data.held_out.sources"
        )
    return notes


def _only_kind(rows: Any) -> str:
    """What all of them are called, where that is one thing."""
    label = LABELLED[-1]
    if rows is None or label not in rows.column_names:
        return ""
    kinds = {"good" if value[0] else "bad" for value in rows[label]}
    return kinds.pop() if len(kinds) == 1 else ""


def _left_out(tables: Sequence[Table]) -> list[str]:
    """Rows that teach nothing, by their reason and with their places; those with a sentence of their own apart."""
    reasons = dict.fromkeys(reason for table in tables for reason in table.dropped_places)
    notes = []
    for reason in reasons:
        if reason in (wire.MARKED, wire.BEYOND):
            continue
        count = sum(table.dropped_reasons[reason] for table in tables)
        places = [place for table in tables for place in table.dropped_places.get(reason, ())]
        more = f" and {count - len(places)} more" if count > len(places) else ""
        notes.append(f"{count} row{'s' * (count != 1)} left out, {reason}: {', '.join(places)}{more}")
    return notes


def _names(remarks: Counter[str], prefix: str) -> str:
    found = Counter({name.removeprefix(prefix): count for name, count in remarks.items() if name.startswith(prefix)})
    shown = [f"{name!a} ({count})" for name, count in sorted(found.most_common(), key=lambda pair: (-pair[1], pair[0]))]
    more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    return ", ".join(shown[:SHOWN] + more)
