"""The rows: how many, how long, what of them is learned, copies and leaks, as the data stage has counted them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from job.report.kept import SAMPLES, Kept
from job.report.page.charts import columns
from job.report.page.markup import Html, joined, table, tag
from job.report.page.shell import badge, bullets

SHOWN_CHARACTERS = 3000  # of a sample
FIRST_SAMPLES = 3
COUNTS = {
    "rows": "Rows",
    "sequences": "Sequences",
    "tokens": "Tokens",
    "trained_tokens": "Learned tokens",
    "longest_tokens": "Longest, tokens",
    "truncated_rows": "Cut to max_seq_length",
    "dropped_rows": "Left out",
    "duplicate_rows": "Copies within",
    "also_trained": "Also among the training rows",
}
SPLITS = {"train": "Training", "held_out": "Held out", "replay": "General, mixed in", "general": "General, measured"}
Json = Mapping[str, Any]


def rows(kept: Kept) -> Html:
    """Counts of both splits, lengths, what is to be known of them."""
    data = kept.stats["data"]
    if not data:
        return Html()
    splits = {name: data[name] for name in SPLITS if data.get(name)}
    names = [name for name in COUNTS if any(name in split for split in splits.values())]
    body: list[list[object]] = [
        [COUNTS[name], *(_count(split.get(name)) for split in splits.values())] for name in names
    ]
    counts = table(["Counted", *(SPLITS[name] for name in splits)], body, "Rows by split")
    lengths = [(name.replace("<=", "≤ "), count) for name, count in data["train"]["lengths"].items()]
    chart = columns("Lengths of training sequences", "tokens", lengths)
    leaks = _leaks(splits)
    return joined(leaks, tag("div", counts, chart, class_="charts"), *_notes(data, splits))


def _count(value: Any) -> str:
    return f"{value:,}" if type(value) is int else "–"


def _leaks(splits: Mapping[str, Json]) -> Html:
    """Whether the figures can be believed: held-out rows that are trained on, copies."""
    held_out, train = splits.get("held_out"), splits["train"]
    leaked, copies = (held_out or {}).get("also_trained"), train.get("duplicate_rows")
    found = []
    if leaked is not None:
        words = f"{leaked:,} held-out sequences are trained on, too: their figures say less"
        found.append(badge(words, "bad") if leaked else badge("no held-out sequence is trained on", "good"))
    if held_out is None:
        found.append(badge("no rows are held out: nothing is measured on rows that are new to the model", "even"))
    if copies is not None:
        found.append(badge(f"{copies:,} copies among the training rows", "even") if copies
                     else badge("no training row is there twice", "good"))  # fmt: skip
    return tag("div", *found, class_="marks") if found else Html()


def _notes(data: Json, splits: Mapping[str, Json]) -> Iterator[Html]:
    said = [data.get("held_out_words"), *data.get("notes", [])]
    for name, split in splits.items():
        for key, words in (("dropped_examples", "left out"), ("truncated_examples", "cut")):
            said += [f"{SPLITS[name]}, {words}: {place}" for place in split.get(key, [])]
    if known := [note for note in said if note]:
        yield tag("h3", "To be known")
        yield bullets(known)


def samples(kept: Kept) -> Html:
    """The first rows as the model has read them, the learned parts marked."""
    shown: Sequence[Json] = kept.samples[:FIRST_SAMPLES]
    return joined(*(_sample(number, sample) for number, sample in enumerate(shown, 1)))


def _sample(number: int, sample: Json) -> Html:
    parts, left = [], SHOWN_CHARACTERS
    for learned, words in sample["runs"]:
        part = words[:left]
        left -= len(words)
        parts.append(tag("mark", part) if learned else joined(part))
        if left <= 0:
            parts.append(joined(f"… (the whole of it is in {SAMPLES})"))
            break
    title = f"Row {number}: {sample['tokens']:,} tokens, {sample['learned']:,} of them learned"
    return tag("div", tag("p", title), tag("pre", *parts, dir="auto"), class_="sample")
