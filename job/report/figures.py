"""The figures of a run in one table: base, tuned, delivered; each number with its unit and what it belongs to.

Card, report and terminal show the same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.evaluation.metrics import METRICS, metric_of
from job.evaluation.metrics.losses import TRAIN_LOSS
from job.evaluation.metrics.task import NAME as TASK
from job.report.judged import sentences
from job.report.markdown import NOTHING, code, figure, sentence, table

BASE, TUNED = "base", "trained"  # as the statistics call them
WORDS = {BASE: "the base", TUNED: "tuned, as trained"}
BEGUN = "the base with the adapter it went on from"
TITLES = {
    TRAIN_LOSS: "Loss on training rows, nats a token",
    **{name: metric.title for name, metric in METRICS.items()},
    "kl": "KL from the tuned, nats a token",
    "same_top_token": "Same first choice, % of tokens",
}
PERCENT = {"same_top_token"}
ROWS = "Rows"
SAME = 1e-4


def title_of(name: str) -> str:
    """ "Name, unit" of a figure; its own name where nothing is known of it."""
    return metric_of(name).title if TASK.fullmatch(name) else TITLES.get(name, name)


@dataclass(frozen=True)
class Row:
    """The figures of one model or artefact, `name` as the statistics call it, as text in the order of the columns."""

    name: str
    cells: tuple[str, ...]
    words: str = ""  # other than its own

    @property
    def label(self) -> str:
        return self.words or WORDS.get(self.name, self.name)


@dataclass(frozen=True)
class Figures:
    """`heads`: of the cells, "name, unit". `note`: what was measured on what, in a sentence or two."""

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str


def measured(stats: Mapping[str, Any]) -> Figures | None:
    """Everything that was measured of the models of a run, from the document of its stats.json; None for nothing.

    Base and tuned model have two rows each where they were measured on more than everything else was.
    """
    delivered = stats["delivered"]
    if not delivered or not delivered["artefacts"]:
        return None
    found = list(_measurements(stats))
    names = [name for name in TITLES if not _by_others(name) and any(name in figures for _, figures, _ in found)]
    exports = [figures for name, figures in delivered["artefacts"].items() if name not in (BASE, TUNED)]
    names += dict.fromkeys(name for figures in exports for name in figures if TASK.fullmatch(name))
    begun = {BASE: BEGUN} if stats["effective"].get("adapter") else {}
    begun |= {TUNED: "the combined adapters"} if stats["effective"].get("combined") else {}
    rows = tuple(
        Row(name, (*(shown(key, figures.get(key)) for key in names), count), begun.get(name, ""))
        for name, figures, count in found
    )
    return Figures(
        (*map(title_of, names), ROWS),
        rows,
        _note(delivered["rows"], names, stats["data"]["held_out_words"]),
    )


NO_DIFFERENCE = "no difference"
INTERVALS = (
    "In brackets, bounds that hold in 19 of 20 samples of rows: bootstrap, 1,000 times as many rows drawn, the same of "
    "both models. No difference: the bounds of the difference have 0 between them."
)


def compared(stats: Mapping[str, Any]) -> Figures | None:
    """Base against tuned by metric, from the document of a stats.json: figures and their difference with intervals,
    and whether that is one; None where nothing was measured of both.
    """
    evaluation = stats["evaluation"]
    rows = tuple(_difference(name, about, evaluation) for name, about in evaluation.get("differences", {}).items())
    heads = ("Base", "Tuned", "Difference", "Verdict", "Rows")
    return Figures(heads, rows, INTERVALS) if rows else None


def since(stats: Mapping[str, Any]) -> Figures | None:
    """What the run had measured whose adapter this one went on from, beside that adapter on this run's rows and the
    tuned model, from the document of a stats.json; None where nothing is known of it.
    """
    evaluation = stats["evaluation"]
    before, own = evaluation.get("before"), [evaluation.get(name) or {} for name in (BASE, TUNED)]
    if not before:
        return None
    names = [name for name in before["figures"] if any(name in figures for figures in own)]
    rows = tuple(Row(metric_of(name).title, tuple(_since(name, before["figures"][name], *own))) for name in names)
    held_out = stats["data"].get("held_out") or {}
    known = before["held_out"] or {}
    alike = bool(known) and all(held_out.get(name) == count for name, count in known.items())
    note = f"The run before is {before['run_id']}; its figures are those that it has published. "
    note += "Its held-out rows have the same number of rows and tokens as this run's." if alike else DIFFERENT_ROWS
    return Figures(("Run before", "Its adapter on these rows", "Tuned", "Tuned less run before"), rows, note)


DIFFERENT_ROWS = (
    "It held out other rows, so its figures say little beside these: its adapter, measured again, and the tuned model "
    "are compared on the same ones."
)


def _since(name: str, before: float, begun: Mapping[str, float], tuned: Mapping[str, float]) -> Iterator[str]:
    now = tuned.get(name)
    for value in (before, begun.get(name), now, None if now is None else now - before):
        yield shown(name, value)


def differences_table(document: Mapping[str, Any]) -> list[str]:
    """Lines of base against tuned with intervals, from the document of a stats.json; none where there is nothing."""
    said = [line for words in sentences(document["evaluation"], code) for line in (words, "")]
    both = {"Base against tuned": compared(document), "Since the run before": since(document)}
    lines = []
    for title, found in both.items():
        if found and found.rows:
            lines += table((title, *found.heads), [(row.label, *row.cells) for row in found.rows])
            lines += [found.note, ""]
    return [*lines, *said]


def verdict(name: str, about: Mapping[str, Any]) -> str:
    """In words, of a metric's member of the differences."""
    if "interval" not in about:
        return "too few rows"
    low, high = about["interval"]
    if low <= 0 <= high:
        return NO_DIFFERENCE
    return "better" if (high < 0) == metric_of(name).lower_is_better else "worse"


def _difference(name: str, about: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Row:
    values = {BASE: evaluation[BASE][name], TUNED: evaluation[TUNED][name], "interval": about["difference"]}
    cells = [_bounded(float(value), about.get(key)) for key, value in values.items()]
    count = f"{about['rows']}" if about["rows"] == about["of"] else f"{about['rows']} of {about['of']}"
    return Row(metric_of(name).title, (*cells, verdict(name, about), count))


def _bounded(value: float, bounds: Sequence[float] | None) -> str:
    return figure(value) + (f" ({figure(float(bounds[0]))} to {figure(float(bounds[1]))})" if bounds else "")


def _measurements(stats: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float], str]]:
    """Name, figures, and the number of rows."""
    delivered, evaluation = stats["delivered"], stats["evaluation"]
    artefacts, compared = delivered["artefacts"], str(delivered["rows"]["rows"])
    both = [name for name in (BASE, TUNED) if evaluation.get(name)]
    if any(not _alike(evaluation[name], artefacts.get(name, {})) for name in both):
        held_out = stats["data"].get("held_out") or {}
        yield from ((name, evaluation[name], f"all {held_out.get('rows', '')}".strip()) for name in both)
    yield from ((name, figures, compared) for name, figures in artefacts.items())


def _alike(ours: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    """Whether the same was measured: a perplexity of a loss that was rounded before is another in its last places."""
    return all(
        math.isclose(value, theirs.get(name, math.nan), rel_tol=SAME)
        for name, value in ours.items()
        if not _by_others(name)
    )


def _by_others(name: str) -> bool:
    """Whether others say it of base and tuned model alone, of rows of their own."""
    return bool(TASK.fullmatch(name)) or (name in METRICS and METRICS[name].by_others)


def shown(name: str, value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{100 * value:.2f}" if name in PERCENT else figure(value)


def _note(rows: Mapping[str, Any], names: Sequence[str], held_out_words: str) -> str:
    what = "held-out rows" if rows["of"] == "held_out" else "training rows (none are held out)"
    which = "all" if rows["all"] else f"{rows['rows']}"
    note = f"Each was opened as its reader opens it and measured on the same rows: {which} {what}, "
    note += f"{rows['learned_tokens']} learned tokens."
    if "kl" in names:
        note += " KL is the mean divergence of the tuned model from it at a learned token (of the adapter: at a token "
        note += "of one row): 0 is equal. Same first choice: the share of places with the same likeliest token."
    if "general_loss" in names:
        note += " The loss on general rows is of as many of them as export.check_tokens tokens hold."
    return f"{note} {sentence(held_out_words)}"


def loss_of_perplexity(perplexity: float | None) -> float | None:
    """In nats a token, of every token's perplexity, as exports are tested; people read another figure by that name."""
    return None if perplexity is None or perplexity <= 0 else math.log(perplexity)


def aligned(found: Figures, width: int | None = None) -> list[str]:
    """The table for a terminal: names over units if there are any, numbers to the right. What is wider than `width`
    goes on below, with the first column again.
    """
    heads = [head.partition(", ") for head in found.heads]
    units = ("", *(unit for _, _, unit in heads))
    lines = [("", *(name for name, _, _ in heads)), *([units] if any(units) else [])]
    lines += [(row.label, *row.cells) for row in found.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    parts: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        taken = widths[0] + sum(2 + widths[other] for other in [*parts[-1], column])
        if width and taken > width and parts[-1]:
            parts.append([])
        parts[-1].append(column)
    blocks = [
        [
            "  ".join([line[0].ljust(widths[0]), *(line[column].rjust(widths[column]) for column in part)]).rstrip()
            for line in lines
        ]
        for part in parts
    ]
    return [*blocks[0], *(line for block in blocks[1:] for line in ("", *block))]
