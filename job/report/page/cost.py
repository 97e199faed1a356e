"""What the run took: seconds and memory of every stage, of every process what was planned and what it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from job.report.kept import Kept
from job.report.page.charts import bar
from job.report.page.markup import Html, joined, table, tag

GB = 1e9
BAR_COLOUR = 1
NOTE = (
    "Peaks. Memory of the host counts child processes and files that are mapped; disk is what the files of the work "
    "folder came to take."
)
PEAKS = {
    "gpu_peak_bytes": "Memory of the GPU",
    "host_peak_bytes": "Memory of the host, at most",
    "disk_peak_bytes": "Scratch disk, at most",
}
Json = Mapping[str, Any]


def stages(kept: Kept) -> Html:
    """A row for each stage. GPU columns only where there was one."""
    phases: Sequence[Json] = kept.stats["phases"]
    if not phases:
        return Html()
    longest = max(phase["wall_seconds"] for phase in phases) or 1
    gpu = any(phase["peak_gpu_reserved_bytes"] for phase in phases)
    heads = ["Stage", "Share of the longest", "Time", "Memory of the host", "Scratch disk"]
    heads += ["Memory of the GPU"] if gpu else []
    rows: list[list[object]] = [
        [phase["name"], bar(phase["wall_seconds"] / longest, BAR_COLOUR), duration(phase["wall_seconds"]),
         gigabytes(phase["peak_rss_bytes"]), gigabytes(phase["peak_disk_bytes"]),
         *([gigabytes(phase["peak_gpu_reserved_bytes"])] if gpu else [])]
        for phase in phases
    ]  # fmt: skip
    whole = table(heads, rows, "Time and memory by stage", words=(1,))
    return joined(whole, tag("p", NOTE, class_="note"), _price(kept.stats), _whole_run(kept.stats), _planned(phases))


def _price(stats: Json) -> Html:
    """What the run has cost by the spec's own price."""
    if not (cost := stats.get("cost")):
        return Html()
    hours, price = cost["hours"], cost["price_per_hour"]
    return tag("p", f"Cost: {cost['cost']:.2f}, {hours:.2f} hours at {price:g} an hour as the spec says.")


def _whole_run(stats: Json) -> Html:
    """Of the whole run and of its stages, what `tunejob plan` reckons beside what it took."""
    planned = stats.get("planned", {})
    pairs: list[tuple[str, Json, Callable[[float], str]]]
    pairs = [(words, planned.get(key, {}), gigabytes) for key, words in PEAKS.items()]
    pairs += [(f"Time of {name}", pair, duration) for name, pair in planned.get("stage_seconds", {}).items()]
    rows = [
        [words, shown(pair["planned"]), shown(pair["actual"]), f"{100 * (pair['actual'] / pair['planned'] - 1):+.0f} %"]
        for words, pair, shown in pairs
        if pair.get("planned") and pair.get("actual") is not None
    ]
    if not rows:
        return Html()
    title = "Planned and taken"
    return joined(tag("h3", title), table(["What", "Planned", "Taken", "Off by"], rows, title))


def _planned(phases: Sequence[Json]) -> Html:
    """Of each process whose memory was planned, the plan beside what it took."""
    children = [(phase["name"], child) for phase in phases for child in phase["children"]]
    rows = [
        [child["what"], stage, gigabytes(child["planned_bytes"]), gigabytes(child["peak_anonymous_bytes"]), _off(child)]
        for stage, child in children
        if child.get("planned_bytes")
    ]
    if not rows:
        return Html()
    heads = ["Process", "Stage", "Planned", "Taken", "Off by"]
    return joined(tag("h3", "Memory, planned and taken"), table(heads, rows, "Memory, planned and taken", words=(1,)))


def _off(child: Json) -> str:
    return f"{100 * (child['peak_anonymous_bytes'] / child['planned_bytes'] - 1):+.1f} %"


def gigabytes(count: float) -> str:
    return f"{count / GB:.2f} GB" if count >= GB / 100 else f"{max(count, 0) / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """In the two largest units."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
