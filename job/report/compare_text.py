"""A comparison for a terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from job.report.compare import ABSENT, ComparedRun, RunComparison
from job.report.figures import title_of
from job.report.kept import number
from job.report.markdown import figure, money
from job.report.page.cost import duration, gigabytes
from job.spec.wording import show

VERSION = 1
SHOWN_ITEMS = 4


def shown(value: Any) -> str:
    """A value of a spec, short: of a list the first items."""
    if value is ABSENT:
        return "nothing"
    if isinstance(value, list) and value:
        more = len(value) - SHOWN_ITEMS
        return ", ".join(map(show, value[:SHOWN_ITEMS])) + (f" and {more} more" if more > 0 else "")
    return show(value)


def columns(comparison: RunComparison) -> tuple[list[str], list[list[str]]]:
    """Heads ("name, unit") and a row for each run: what it is, its metrics, what it took."""
    runs = comparison.runs
    gpu, priced = any(run.peak_gpu_bytes for run in runs), any(run.cost is not None for run in runs)
    heads = ["Run", *(title_of(name) for name in comparison.metrics), "Steps", "Time", "Memory"]
    heads += [*(["GPU memory"] if gpu else []), *(["Cost"] if priced else []), "State"]
    rows = []
    for run in runs:
        memory = [gigabytes(run.peak_host_bytes), *([gigabytes(run.peak_gpu_bytes)] if gpu else [])]
        known = [figure(run.figures.get(name)) for name in comparison.metrics]
        steps = figure(run.stats["training"].get("steps"))
        costs = [money(run.cost)] if priced else []
        rows.append([run.label, *known, steps, duration(run.seconds), *memory, *costs, run.status])
    return heads, rows


def as_text(comparison: RunComparison) -> str:
    """The tables: runs, best at first, then what differs."""
    return "\n".join(_lines(comparison)) + "\n"


def _lines(comparison: RunComparison) -> Iterator[str]:
    heads, rows = columns(comparison)
    split = [head.partition(", ") for head in heads]
    yield verdict(comparison)
    yield ""
    yield from _aligned([[name for name, _, _ in split], [unit for _, _, unit in split], *rows])
    yield ""
    if comparison.differences:
        yield "What differs in their specs:"
        labels = [run.label for run in comparison.runs]
        body = [[pointer, *map(shown, values)] for pointer, values in comparison.differences]
        yield from _aligned([["", *labels], *body], numbers=False)
    else:
        yield "Their specs do not differ."
    yield from (f"note: {note}" for note in comparison.notes)


def verdict(comparison: RunComparison) -> str:
    """Which of them is best, in a sentence."""
    best, count = comparison.best, len(comparison.runs)
    if best is None or comparison.by is None:
        return f"{count} runs; no metric was measured of them."
    title = title_of(comparison.by).partition(", ")[0].lower()
    value = best.figures[comparison.by]
    equal = [run.label for run in comparison.runs if run.figures.get(comparison.by) == value]
    if len(equal) > 1:
        return f"{', '.join(equal[:-1])} and {equal[-1]} are equally good by {title}, with {figure(value)}."
    return f"{best.label} is best by {title} of {count} runs, with {figure(value)}."


def _aligned(lines: Sequence[Sequence[str]], numbers: bool = True) -> Iterator[str]:
    """Columns as wide as they have to be; those after the first to the right if they are `numbers`."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        pairs = zip(others, widths[1:], strict=True)
        cells = [cell.rjust(width) if numbers else cell.ljust(width) for cell, width in pairs]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def as_json(comparison: RunComparison) -> str:
    """As `schemas/compare.schema.json` has it."""
    document = {
        "version": VERSION,
        "by": comparison.by,
        "best": comparison.best.output if comparison.best else None,
        "runs": [_run(run) for run in comparison.runs],
        "differences": [
            {"pointer": pointer, "values": [None if value is ABSENT else value for value in values],
             "absent": [value is ABSENT for value in values]}
            for pointer, values in comparison.differences
        ],
        "notes": list(comparison.notes),
    }  # fmt: skip
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _run(run: ComparedRun) -> dict[str, Any]:
    base = run.stats["evaluation"].get("base") or {}
    return {
        "label": run.label,
        "output": run.output,
        "run_id": run.stats["run_id"],
        "status": run.status,
        "base": {name: value for name, value in base.items() if number(value) is not None},
        "trained": run.figures,
        "delivered": run.stats["delivered"].get("artefacts") or {},
        "steps": run.stats["training"].get("steps"),
        "seconds": run.seconds,
        "peak_host_bytes": run.peak_host_bytes,
        "peak_gpu_bytes": run.peak_gpu_bytes,
        "device": run.stats["device"].get("name"),
        "price_per_hour": run.price_per_hour,
        "cost": run.cost,
    }
