"""Charts as plain SVG: pygal draws lines over steps and columns of counts, the page's style colours them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from job.report.page.markup import Html, joined, plain, tag

WIDTH, HEIGHT = 460, 230
MOST_POINTS = 240  # of a line; a chart of more than two has as many as two
FEWEST_POINTS = 24
FEWEST_COLUMNS = 4  # a few would be very wide
TICKS = 5
LARGEST = 1e30  # that is drawn; beyond it, and below its inverse, pygal's arithmetic ends
DECADES = 1.5  # from so many powers of ten on, a scale is logarithmic
NAMESPACE = "{http://www.w3.org/2000/svg}"
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line of the chart. `colour`: its number in the style. `dots`: points that were measured one by one."""

    name: str
    points: Sequence[Point]
    colour: int
    dots: bool = False


def lines(title: str, unit: str, series: Sequence[Series], across: str = "step") -> Html:
    """A chart of `series` over steps; nothing where no line has a point."""
    found = [line for line in map(_drawable, series) if line.points]
    if not found:
        return Html()
    import pygal

    most = max(FEWEST_POINTS, 2 * MOST_POINTS // max(2, len(found)))
    drawn = [Series(s.name, _thinned(s.points, most), s.colour, s.dots) for s in found]
    steps = [at for line in drawn for at, _ in line.points]
    values = [value for line in drawn for _, value in line.points]
    logarithmic = min(values) > 0 and math.log10(max(values) / min(values)) > DECADES
    height = math.log10 if logarithmic else float  # pygal's own logarithmic scale has the steps on it as well
    low, high = height(min(values)), height(max(values))
    if not logarithmic and 0 <= low < 0.5 * high:
        low = 0
    chart = pygal.XY(
        **_common(),
        x_labels=_ticks(min(0, *steps), max(steps), least=1),
        x_value_formatter=lambda at: f"{at:,.0f}",
        y_labels=_ticks(low, high, least=1 if logarithmic else 0),
        value_formatter=lambda at: _short(10**at if logarithmic else at),
        dots_size=3.5,
    )
    for line in drawn:
        points = [((at, height(value)), f"{across} {at:g}: {line.name} {_short(value)}") for at, value in line.points]
        chart.add(None, [{"value": place, "label": plain(words)} for place, words in points])
    said = "; ".join(f"{s.name}: {_short(s.points[0][1])} at first, {_short(s.points[-1][1])} at last" for s in drawn)
    words = ", ".join(filter(None, (f"{unit} by {across}".lstrip(), "logarithmic" if logarithmic else "")))
    kept = max(len(s.points) for s in found)
    thinned = f"{most} of {kept:,} points are drawn." if kept > most else ""
    if beyond := sum(len(line.points) for line in series) - sum(len(line.points) for line in found):
        thinned = f"{thinned} {beyond:,} beyond {LARGEST:g} are left out.".lstrip()
    kinds = [f"colour{line.colour}{' measured' if line.dots or len(line.points) == 1 else ''}" for line in drawn]
    return _figure(title, words, _legend(drawn), _svg(chart, kinds, f"{title}: {said}"), thinned)


def columns(title: str, unit: str, counts: Sequence[tuple[str, int]]) -> Html:
    """A column for each name, with its count over it."""
    if not counts:
        return Html()
    import pygal

    beside = [""] * max(0, FEWEST_COLUMNS - len(counts))
    chart = pygal.Bar(
        **_common(),
        value_formatter=lambda count: f"{count:,}",
        x_labels=[*(name for name, _ in counts), *beside],
        print_values=True,
        print_values_position="top",
        show_y_labels=False,
        show_y_guides=False,
    )
    chart.add(None, [{"value": count, "label": plain(f"{name}: {count:,}")} for name, count in counts])
    said = ", ".join(f"{name} {count:,}" for name, count in counts)
    return _figure(title, unit, Html(), _svg(chart, ["colour1"], f"{title}: {said}"), "")


def bar(share: float, colour: int = 0) -> Html:
    """A bar of `share` (0 to 1) of a table cell; the figure beside it says the same."""
    size = max(0.6, 100 * min(1.0, max(0.0, share))) if share else 0
    filled = tag("rect", width=round(size, 2), height=8, class_=f"fill{colour}")
    return tag("svg", filled, viewBox="0 0 100 8", preserveAspectRatio="none", class_="bar", aria_hidden="true")


def _common() -> dict[str, Any]:
    """Of every chart: what pygal would colour, write beside it or load is left out."""
    from pygal.style import Style

    return {
        "width": WIDTH,
        "height": HEIGHT,
        "margin": 4,
        "margin_right": 18,  # half of the last step's number
        "js": (),
        "css": (),
        "show_legend": False,
        "style": Style(label_font_size=12, major_label_font_size=12, value_font_size=12, title_font_size=12),
        "truncate_label": -1,
    }


def _figure(title: str, unit: str, legend: Html, drawing: Html, note: str) -> Html:
    caption = tag("figcaption", tag("b", title), tag("span", unit, class_="unit"), legend)
    return tag("figure", caption, drawing, tag("p", note, class_="note") if note else "", class_="chart")


def _svg(chart: Any, kinds: Sequence[str], said: str) -> Html:
    """pygal's drawing, with `kinds` as the classes of its series, and without its style and what is there for
    scripts: the label of a point is what the pointer shows.
    """
    root = ElementTree.fromstring(chart.render())  # noqa: S314 - drawn just now
    viewed = root.attrib["viewBox"]
    for parent in [*root.iter()]:
        parent.tag = parent.tag.removeprefix(NAMESPACE)
        for child in [*parent]:
            name, kind = child.tag.removeprefix(NAMESPACE), child.get("class", "")
            if name == "desc" and kind == "label":
                child.tag, child.attrib = "title", {}
            elif name in ("defs", "desc") or kind == "background" or kind.endswith("tooltip-overlay"):
                parent.remove(child)
            elif kind.startswith("series "):
                child.set("class", kinds[int(kind.rpartition("-")[2])])
    root.attrib = {"viewBox": viewed, "role": "img", "aria-label": plain(said)}
    root.remove(next(child for child in root if child.tag == "title"))  # it would be shown everywhere
    return Html(ElementTree.tostring(root, encoding="unicode"))


def _legend(series: Sequence[Series]) -> Html:
    """Of more than one line."""
    if len(series) == 1:
        return Html()
    keys = [joined(tag("span", class_=f"key back{line.colour}"), line.name) for line in series]
    return tag("span", *(tag("span", key, class_="entry") for key in keys), class_="legend")


def _ticks(low: float, high: float, least: float = 0) -> list[float]:
    """Numbers around both, about as many as there is room for, 1, 2 or 5 times a power of ten apart."""
    rough = max(least, (high - low or abs(high) or 1) / TICKS)
    power = 10.0 ** math.floor(math.log10(rough))
    every = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    numbers = range(math.floor(low / every), math.ceil(high / every) + 1)
    return [float(f"{every * number:.12g}") for number in numbers]


def _drawable(series: Series) -> Series:
    points = [(at, value if abs(value) * LARGEST >= 1 else 0.0) for at, value in series.points if abs(value) <= LARGEST]
    return Series(series.name, points, series.colour, series.dots)


def _thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    every = (len(points) - 1) / (most - 1)
    return [points[round(at * every)] for at in range(most)]


def _short(value: float) -> str:
    return f"{value:.3g}"
