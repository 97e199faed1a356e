"""Charts as plain SVG, coloured by the page's style: lines over steps, columns of counts, a bar in a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from job.report.page.markup import Html, joined, tag, text

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 10, 36
MOST_POINTS = 240
FEWEST_COLUMNS = 4  # a few would be very wide
TICKS = 5
DECADES = 1.5  # from so many powers of ten on, a scale is logarithmic
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line of the chart. `colour`: its number in the style. `dots`: points that were measured one by one."""

    name: str
    points: Sequence[Point]
    colour: int
    dots: bool = False


@dataclass(frozen=True)
class Scale:
    """From `low` to `high` onto pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = max(1, math.ceil((last - first) / TICKS))
            return [10.0**power for power in range(first, last + 1, every) if self.low <= 10.0**power <= self.high]
        step = _step(self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def lines(title: str, unit: str, series: Sequence[Series], across: str = "step") -> Html:
    """A chart of `series` over steps; nothing where no line has a point."""
    drawn = [Series(s.name, _thinned(s.points), s.colour, s.dots) for s in series if s.points]
    if not drawn:
        return Html()
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    x = Scale(min(0, *xs), max(xs), LEFT, WIDTH - RIGHT)
    y = _vertical(ys)
    parts = [*_grid(x, y, across), *(part for line in drawn for part in _line(line, x, y)), *_hits(drawn, x)]
    said = "; ".join(f"{s.name}: {_short(s.points[0][1])} at first, {_short(s.points[-1][1])} at last" for s in drawn)
    words = ", ".join(filter(None, (unit, "logarithmic" if y.logarithmic else "")))
    kept = max(len(s.points) for s in series)
    thinned = f" {MOST_POINTS} of {kept:,} points are drawn." if kept > MOST_POINTS else ""
    return _figure(title, words, _legend(drawn) if len(drawn) > 1 else Html(), parts, f"{title}: {said}", thinned)


def columns(title: str, unit: str, counts: Sequence[tuple[str, int]]) -> Html:
    """A column for each name, with its count over it."""
    if not counts:
        return Html()
    most = max(count for _, count in counts) or 1
    width = (WIDTH - 2 * RIGHT) / max(len(counts), FEWEST_COLUMNS)
    start = (WIDTH - len(counts) * width) / 2
    y = Scale(0, most, HEIGHT - BOTTOM, TOP + 16)
    parts: list[Html] = [tag("line", x1=RIGHT, x2=WIDTH - RIGHT, y1=y(0), y2=y(0), class_="axis")]
    for at, (name, count) in enumerate(counts):
        left, middle = start + at * width, start + (at + 0.5) * width
        box = {"x": round(left + width * 0.12, 1), "width": round(width * 0.76, 1), "y": y(count)}
        top = tag("title", f"{name}: {count:,}")
        parts += [
            tag("rect", top, **box, height=round(y(0) - y(count), 1), rx=2, class_="column"),
            tag("text", f"{count:,}", x=round(middle, 1), y=y(count) - 5, class_="middle value"),
            tag("text", name, x=round(middle, 1), y=y(0) + 17, class_="middle"),
        ]
    said = ", ".join(f"{name} {count:,}" for name, count in counts)
    return _figure(title, unit, Html(), parts, f"{title}: {said}", "")


def bar(share: float, colour: int = 0) -> Html:
    """A bar of `share` (0 to 1) of a table cell; the figure beside it says the same."""
    size = max(0.6, 100 * min(1.0, max(0.0, share))) if share else 0
    filled = tag("rect", width=round(size, 2), height=8, class_=f"fill{colour}")
    return tag("svg", filled, viewBox="0 0 100 8", preserveAspectRatio="none", class_="bar", aria_hidden="true")


def _figure(title: str, unit: str, legend: Html, parts: Sequence[Html], said: str, note: str) -> Html:
    caption = tag("figcaption", tag("b", title), tag("span", unit, class_="unit"), legend)
    drawing = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=said)
    return tag("figure", caption, drawing, tag("p", note, class_="note") if note else "", class_="chart")


def _legend(series: Sequence[Series]) -> Html:
    keys = [joined(tag("span", class_=f"key back{line.colour}"), line.name) for line in series]
    return tag("span", *(tag("span", key, class_="entry") for key in keys), class_="legend")


def _grid(x: Scale, y: Scale, across: str) -> Iterator[Html]:
    for value in y.ticks():
        yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="grid")
        yield tag("text", _short(value), x=LEFT - 7, y=y(value) + 4, class_="end")
    for value in x.ticks():
        if value == int(value):
            yield tag("text", f"{int(value):,}", x=x(value), y=HEIGHT - BOTTOM + 17, class_="middle")
    yield tag("text", across, x=WIDTH - RIGHT, y=HEIGHT - 4, class_="end")


def _line(line: Series, x: Scale, y: Scale) -> Iterator[Html]:
    places = [(x(at), y(value)) for at, value in line.points]
    if len(places) > 1:
        path = "M" + "L".join(f"{left:g} {top:g}" for left, top in places)
        yield tag("path", d=path, class_=f"line line{line.colour}{' dashed' if line.dots else ''}")
    for left, top in places if line.dots or len(places) == 1 else places[-1:]:
        yield tag("circle", cx=left, cy=top, r=3.5, class_=f"fill{line.colour}")


def _hits(series: Sequence[Series], x: Scale) -> Iterator[Html]:
    """What is shown under the pointer: the figures at the nearest step."""
    steps = sorted({at for line in series for at, _ in line.points})
    edges = [x.start, *((x(a) + x(b)) / 2 for a, b in pairwise(steps)), x.end]
    found = [(line.name, dict(line.points)) for line in series]
    for at, (left, right) in zip(steps, pairwise(edges), strict=True):
        known = [f"{name} {_short(values[at])}" for name, values in found if at in values]
        title = tag("title", f"step {at:g}: {', '.join(known)}")
        width = round(max(right - left, 0.5), 1)
        yield tag("rect", title, x=round(left, 1), y=TOP, width=width, height=HEIGHT - TOP - BOTTOM, class_="hit")


def _vertical(values: Sequence[float]) -> Scale:
    """Logarithmic where values are far apart, from zero where that is near, with some room at both ends."""
    low, high = min(values), max(values)
    bottom, top = HEIGHT - BOTTOM, TOP
    if low > 0 and math.log10(high / low) > DECADES:
        return Scale(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)), bottom, top, True)
    if 0 <= low < 0.5 * high:
        low = 0.0
    step = _step(high - low or abs(high) or 1.0)
    return Scale(math.floor(low / step) * step, math.ceil(high / step) * step, bottom, top)


def _step(span: float) -> float:
    """Between ticks: 1, 2 or 5 times a power of ten."""
    rough = (span or 1.0) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most so many points, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return list(points)
    every = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(at * every)] for at in range(MOST_POINTS)]


def _short(value: float) -> str:
    return str(text(f"{value:.3g}"))
