"""Several runs on one page, in the form of a run's own."""

from __future__ import annotations

from collections.abc import Iterator

from job.report.compare import RunComparison
from job.report.compare_text import columns, shown, verdict
from job.report.figures import TITLES, WORDS
from job.report.figures import shown as shown_figure
from job.report.kept import HELD_OUT_CURVE, is_held_out, number
from job.report.markdown import NOTHING
from job.report.page.charts import Series, bar, lines
from job.report.page.cost import duration
from job.report.page.markup import Html, joined, table, tag
from job.report.page.measures import curve_title, head
from job.report.page.shell import Section, bullets, page
from job.report.verdict import EVEN, GOOD

COLOURS = 8  # in the style; further runs take them again


def compare_page(comparison: RunComparison) -> str:
    """The whole document."""
    count = len(comparison.runs)
    sections = [
        Section("runs", "Runs", _runs(comparison), "The best at first. Figures are those of the tuned model."),
        Section("differences", "What differs", _differences(comparison), "Keys of their specs that are not the same."),
        Section("curves", "Training", _curves(comparison)),
        Section("delivered", "Everything that is delivered", _delivered(comparison)),
        Section("cost", "Time by stage", _stages(comparison)),
        Section("notes", "To be known", bullets(comparison.notes)),
    ]
    kind = GOOD if comparison.best else EVEN
    header = joined(
        tag("p", "Comparison of fine-tuning runs", class_="kicker"),
        tag("h1", f"{count} runs"),
        tag("p", "Which of these runs is best, and what is different about it?", class_="question"),
        tag("div", tag("p", "Best" if comparison.best else "No figure", class_="label"), tag("p", verdict(comparison)),
            class_=f"verdict {kind}"),
    )  # fmt: skip
    return page(f"{count} runs – tunejob", header, sections, "Comparison, written by")


def _runs(comparison: RunComparison) -> Html:
    heads, rows = columns(comparison)
    best = comparison.best
    body: list[list[object]] = [[_label(comparison, number), *row[1:]] for number, row in enumerate(rows)]
    for row, run in zip(body, comparison.runs, strict=True):
        if best and comparison.by and run.figures.get(comparison.by) == best.figures[comparison.by]:
            row[1] = tag("span", row[1], class_="best")
    places = [(run.label, tag("code", run.output)) for run in comparison.runs]
    where = tag("dl", *(joined(tag("dt", name), tag("dd", place)) for name, place in places), class_="facts")
    return joined(table(list(map(head, heads)), body, "Runs"), tag("details", tag("summary", "Where they are"), where))


def _label(comparison: RunComparison, index: int) -> Html:
    return joined(tag("span", class_=f"key back{index % COLOURS}"), " ", comparison.runs[index].label)


def _differences(comparison: RunComparison) -> Html:
    labels = [_label(comparison, index) for index in range(len(comparison.runs))]
    rows = [[tag("code", pointer), *map(shown, values)] for pointer, values in comparison.differences]
    if not rows:
        return tag("p", "Their specs do not differ.")
    return table(["Key", *labels], rows, "What differs in their specs", words=range(1, len(labels) + 1))


def _curves(comparison: RunComparison) -> Html:
    """A chart for each figure, its lines the runs'."""
    found = [run.curves() for run in comparison.runs]
    names = dict.fromkeys(name for curves in found for name in curves)
    first = [name for name in ("loss", HELD_OUT_CURVE) if name in names]
    charts = [_chart(comparison, name, [curves.get(name, []) for curves in found])
              for name in dict.fromkeys([*first, *names])]  # fmt: skip
    return tag("div", *charts, class_="charts") if charts else Html()


def _chart(comparison: RunComparison, name: str, lines_of: list[list[tuple[float, float]]]) -> Html:
    title, unit = curve_title(name)
    series = [
        Series(run.label, points, index % COLOURS, is_held_out(name))
        for index, (run, points) in enumerate(zip(comparison.runs, lines_of, strict=True))
    ]
    return lines("Training loss" if name == "loss" else title, unit, series)


def _delivered(comparison: RunComparison) -> Html:
    """Base, tuned and every artefact of each run, in one table."""
    rows = list(_artefacts(comparison))
    names = [name for name in TITLES if any(name in figures for _, _, figures in rows)]
    body = [
        [label, WORDS.get(what, what), *(shown_figure(name, number(figures.get(name))) for name in names)]
        for label, what, figures in rows
    ]
    if not body:
        return Html()
    return table(
        ["Run", "Model", *(head(TITLES[name]) for name in names)], body, "Everything that is delivered", words=(1,)
    )


def _artefacts(comparison: RunComparison) -> Iterator[tuple[Html, str, dict[str, object]]]:
    for index, run in enumerate(comparison.runs):
        known = run.stats["delivered"].get("artefacts") or {}
        for what, figures in known.items():
            if isinstance(figures, dict):
                yield _label(comparison, index), what, figures


def _stages(comparison: RunComparison) -> Html:
    """Seconds of each stage of each run, with a bar beside the longest."""
    times = [{phase["name"]: float(phase["wall_seconds"]) for phase in run.stats["phases"]} for run in comparison.runs]
    names = dict.fromkeys(name for known in times for name in known)
    longest = max((seconds for known in times for seconds in known.values()), default=0) or 1
    labels = [_label(comparison, index) for index in range(len(times))]
    rows: list[list[object]] = [
        [name, *(_bar(known.get(name), longest, index) for index, known in enumerate(times))] for name in names
    ]
    if not rows:
        return Html()
    rows.append(["whole run", *(duration(run.seconds) for run in comparison.runs)])
    return table(["Stage", *labels], rows, "Time by stage", words=range(1, len(labels) + 1))


def _bar(seconds: float | None, longest: float, index: int) -> object:
    return NOTHING if seconds is None else joined(duration(seconds), bar(seconds / longest, index % COLOURS))
