"""What was measured: base and tuned in boxes, everything that is delivered in a table, the gates, the curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from job.report.figures import BASE, TITLES, TUNED, measured
from job.report.gates import EXPORTS, FAILED, GATES, PASSED, Gate
from job.report.kept import HELD_OUT_CURVE, Curves, Kept, curves, held_out_curve
from job.report.markdown import figure
from job.report.page.charts import Series, lines
from job.report.page.markup import Html, joined, table, tag
from job.report.page.shell import badge, tiles
from job.report.verdict import Change, changes

BASE_COLOUR, TUNED_COLOUR, HELD_OUT_COLOUR = 0, 1, 2
WORDS = {PASSED: ("holds", "good"), FAILED: ("fails", "bad")}
LOSS = "loss"
CURVES = {  # titles and units of figures that a training logs; others are shown by their own names
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Norm of the gradient", ""),
    "tokens_per_second": ("Speed", "tokens a second"),
}


def headline(kept: Kept) -> Html:
    """A box for each figure that both have."""
    found = changes(kept.stats["evaluation"])
    return tiles([(_name(change), _before_after(change), _change(change)) for change in found])


def _name(change: Change) -> Html:
    return joined(change.title, ", " if change.unit else "", tag("span", change.unit, class_="unit"))


def _before_after(change: Change) -> Html:
    return joined(tag("span", f"{figure(change.base, 3)} → ", class_="before"), figure(change.tuned, 3))


def _change(change: Change) -> Html:
    if change.gain is None:
        return Html()
    if not change.gain:
        return tag("span", "no difference", class_="soft")
    better = change.gain > 0
    return tag("span", f"{'better' if better else 'worse'} by {figure(abs(change.gain), 3)}",
               class_="good-text" if better else "bad-text")  # fmt: skip


def figures_table(kept: Kept) -> Html:
    """Base, tuned and everything that is delivered, in the columns that card and summary have."""
    found = measured(kept.stats)
    if found is None:
        return Html()
    rows: list[list[object]] = [[_model(row.name, row.label), *row.cells] for row in found.rows]
    label = "Figures of base, tuned model and everything that is delivered"
    whole = table(["Model", *map(head, found.heads)], rows, label)
    return joined(whole, tag("p", found.note, class_="note"))


def head(title: str) -> Html:
    """ "Name, unit" as a heading of a column."""
    name, _, unit = title.partition(", ")
    return joined(name, " ", tag("span", unit, class_="unit")) if unit else joined(name)


def _model(name: str, label: str) -> Html:
    colour = {BASE: BASE_COLOUR, TUNED: TUNED_COLOUR}.get(name)
    return joined(tag("span", class_=f"key back{colour}"), " ", label) if colour is not None else joined(label)


def gates_table(gates: Sequence[Gate]) -> Html:
    """The spec's gates; the tests of exports stand beside the exports."""
    rows: list[list[object]] = [
        [gate.about, gate.asked, gate.said, result(gate)] for gate in gates if gate.suite == GATES
    ]
    return table(["Of", "Asked", "Found", "Result"], rows, "Gates", words=(1, 2, 3)) if rows else Html()


def result(gate: Gate) -> Html:
    words, kind = WORDS.get(gate.result, ("not judged", "even"))
    if gate.suite == EXPORTS:
        words = {"holds": "passed", "fails": "refused"}.get(words, "not made")
    return badge(words, kind)


def training_curves(kept: Kept) -> Html:
    """Losses in one chart, every other figure of the log in one of its own."""
    found = curves(kept.losses)
    if measured_losses := held_out_curve(kept.stats, found.pop(HELD_OUT_CURVE, [])):
        found[HELD_OUT_CURVE] = measured_losses
    charts = list(_charts(found))
    return tag("div", *charts, class_="charts") if charts else Html()


def _charts(found: Curves) -> Iterator[Html]:
    losses = [Series(word, found.pop(name), colour, dots) for name, word, colour, dots in (
        (LOSS, "training", TUNED_COLOUR, False), (HELD_OUT_CURVE, "held-out", HELD_OUT_COLOUR, True),
    ) if name in found]  # fmt: skip
    yield lines("Loss", "nats a token", losses)
    for name, points in found.items():
        yield lines(*curve_title(name), [Series(name, points, TUNED_COLOUR)])


def curve_title(name: str) -> tuple[str, str]:
    """Title and unit of a figure over the steps."""
    if name in CURVES:
        return CURVES[name]
    title, _, unit = TITLES.get(name, "Loss, nats a token" if name == LOSS else name).partition(", ")
    return title, unit
