"""What was measured: base and tuned in boxes, everything that is delivered in a table, the gates, the curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from job.report.figures import BASE, TITLES, TUNED, measured, since
from job.report.gates import EXPORTS, FAILED, GATES, PASSED, Gate
from job.report.judged import sentences
from job.report.kept import HELD_OUT_CURVE, Curves, Kept, curves, is_held_out, number
from job.report.markdown import NOTHING, figure
from job.report.page.charts import Series, lines
from job.report.page.markup import Html, joined, table, tag
from job.report.page.shell import badge, tiles
from job.report.verdict import DIFFERENCES, MetricChange, changes

BASE_COLOUR, TUNED_COLOUR, HELD_OUT_COLOUR = 0, 1, 2
WORDS = {PASSED: ("holds", "good"), FAILED: ("fails", "bad")}
LOSS = "loss"
CURVES = {  # titles and units of figures that a training logs; others are shown by their own names
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Norm of the gradient", ""),
    "tokens_per_second": ("Speed", "tokens a second"),
    "reward": ("Reward", "mean of a step"),
    "reward_deviation": ("Spread of the reward", "within a prompt"),
    "alike_groups": ("Prompts whose answers are all worth the same", "0 to 1"),
    "answer_tokens": ("Length of answers", "tokens"),
    "cut_answers": ("Answers that were cut", "0 to 1"),
    "entropy": ("Entropy", "nats a token"),
    "kl": ("KL from the reference", "nats"),
}
OF_REWARD = "reward_"
MOST_TILES = 8


def headline(kept: Kept) -> Html:
    """A box for each figure that both have; of many, those that gates are about, then those that are worse, then the
    first.
    """
    found = list(changes(kept.stats["evaluation"]))
    gated = {gate.metric for gate in kept.spec.evaluation.gates}
    chosen = sorted(found, key=lambda change: (change.name not in gated, not change.worse))[:MOST_TILES]
    boxes = tiles([(_name(one), _before_after(one), _change(one)) for one in found if one in chosen])
    more = len(found) - len(chosen)
    if not more:
        return boxes
    link = tag("a", f"{more} more {'figure' if more == 1 else 'figures'}", href="#figures")
    return joined(boxes, tag("p", link, " of both models below", class_="note"))


def _name(change: MetricChange) -> Html:
    return joined(change.title, ", " if change.unit else "", tag("span", change.unit, class_="unit"))


def _before_after(change: MetricChange) -> Html:
    return joined(tag("span", f"{figure(change.base, 3)} → ", class_="before"), figure(change.tuned, 3))


def _change(change: MetricChange) -> Html:
    if change.gain is None:
        return Html()
    low, high = change.bounds or (None, None)
    if not change.better and not change.worse:
        within = f" ({figure(low, 3)} to {figure(high, 3)})" if change.bounds else ""
        return tag("span", f"no difference shown{within}", class_="soft")
    words, kind = ("better", "good-text") if change.better else ("worse", "bad-text")
    bounds = sorted(map(abs, change.bounds or ()))
    within = f" ({figure(bounds[0], 3)} to {figure(bounds[1], 3)})" if bounds else ""
    return tag("span", f"{words} by {figure(abs(change.gain), 3)}{within}", class_=kind)


def figures_table(kept: Kept) -> Html:
    """Base, tuned and everything that is delivered, in the columns that card and summary have."""
    found = measured(kept.stats)
    if found is None:
        return Html()
    rows: list[list[object]] = [[_model(row.name, row.label), *row.cells] for row in found.rows]
    label = "Figures of base, tuned model and everything that is delivered"
    whole = table(["Model", *map(head, found.heads)], rows, label)
    return joined(whole, tag("p", found.note, class_="note"), _differences(kept), _since(kept))


def _since(kept: Kept) -> Html:
    """Beside what the run had measured whose adapter this one went on from."""
    found = since(kept.stats)
    if found is None or not found.rows:
        return Html()
    title, rows = "Since the run before", [[row.label, *row.cells] for row in found.rows]
    return joined(tag("h3", title), table(["Figure", *found.heads], rows, title), tag("p", found.note, class_="note"))


def _differences(kept: Kept) -> Html:
    """Base against tuned with the bounds of each, where a run has them."""
    rows: list[list[object]] = []
    for change in changes(kept.stats["evaluation"]):
        about = (kept.stats["evaluation"].get(DIFFERENCES) or {}).get(change.name)
        if isinstance(about, dict):
            values = {"base": change.base, "trained": change.tuned, "interval": about.get("difference")}
            cells = [joined(figure(value), _within(about.get(key))) for key, value in values.items()]
            rows.append([_name(change), *cells, f"{about.get('rows', NOTHING)}"])
    said = joined(*(tag("p", words, class_="note") for words in sentences(kept.stats["evaluation"])))
    if not rows:
        return said
    title = "Base against tuned, with bounds that hold in 19 of 20 samples of rows"
    whole = table(["Figure", "Base", "Tuned", "Tuned less base", "Rows"], rows, title)
    return joined(tag("h3", title), whole, said)


def _within(bounds: object) -> Html:
    known = list(map(number, bounds)) if isinstance(bounds, list) and len(bounds) == 2 else [None]
    return Html() if None in known else tag("span", f" {figure(known[0])} to {figure(known[1])}", class_="unit")


def head(title: str) -> Html:
    """ "Name, unit" as a heading of a column."""
    name, _, unit = title.partition(", ")
    return joined(name, " ", tag("span", unit, class_="unit")) if unit else joined(name)


def _model(name: str, label: str) -> Html:
    colour = {BASE: BASE_COLOUR, TUNED: TUNED_COLOUR}.get(name)
    return joined(tag("span", class_=f"key back{colour}"), " ", label) if colour is not None else joined(label)


def gates_table(gates: Sequence[Gate]) -> Html:
    """The spec's gates; the tests of exports are shown beside the exports."""
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
    charts = list(_charts(curves(kept.stats, kept.losses)))
    return tag("div", *charts, class_="charts") if charts else Html()


def _charts(found: Curves) -> Iterator[Html]:
    held_out = [name for name in found if is_held_out(name)]
    beside = next((name for name in held_out if name != HELD_OUT_CURVE), HELD_OUT_CURVE)  # what a method lowers
    losses = [Series("training", found.pop(LOSS, []), TUNED_COLOUR)]
    losses.append(Series("held-out", found.pop(beside, []), HELD_OUT_COLOUR, dots=True))
    yield lines("Loss", "nats a token" if beside == HELD_OUT_CURVE else "", losses)
    for name, points in found.items():
        dots, colour = is_held_out(name), HELD_OUT_COLOUR if is_held_out(name) else TUNED_COLOUR
        yield lines(*curve_title(name), [Series(name, points, colour, dots)])


def curve_title(name: str) -> tuple[str, str]:
    """Title and unit of a figure over the steps."""
    if name in CURVES:
        return CURVES[name]
    if name in TITLES or name == LOSS:
        title, _, unit = TITLES.get(name, "Loss, nats a token").partition(", ")
        return title, unit
    words = name.replace("_", " ")
    return (f"Reward: {words[len(OF_REWARD) :]}" if name.startswith(OF_REWARD) else words.capitalize()), ""
