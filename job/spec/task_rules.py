"""Rules of a spec about its benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from job.errors import Fault
from job.evaluation.metrics.task import NAME
from job.spec.data_rules import address_faults
from job.spec.defaults import asked_for, form_of_tasks
from job.spec.wording import show

Json = dict[str, Any]
HUB = "hf://datasets/"


def as_object(task: str | Json) -> Json:
    """A benchmark that is a name alone, in the form of the others."""
    return {"name": task} if isinstance(task, str) else task


def benchmarks(document: Json) -> Iterator[Fault]:
    evaluation = document.get("evaluation", {})
    tasks = [as_object(task) for task in evaluation.get("tasks", [])]
    for index, task in enumerate(tasks):
        pointer = f"/evaluation/tasks/{index}"
        if "source" in task:
            yield from address_faults(task["source"], f"{pointer}/source", HUB)
        for key in ("rows", "subset", "split"):
            if asked_for(task, key, form_of_tasks()) and "source" not in task:
                yield Fault("this is about a source", where=f"{pointer}/{key}", found=show(task[key]),
                            expected=f"{pointer}/source", hint="Say where the rows are")  # fmt: skip
        if {"choices", "choices_column"} <= task.get("rows", {}).keys():
            yield Fault("answers of all rows and answers of each exclude each other", where=f"{pointer}/rows/choices",
                        found="choices and choices_column", expected="one of them")  # fmt: skip
        if asked_for(task, "split", form_of_tasks()) and "rows" not in task and "source" in task:
            yield Fault("a task of lm-eval says by itself which splits it takes", where=f"{pointer}/split",
                        found=show(task["split"]), expected="no split without rows")  # fmt: skip
        if task["name"] in [other["name"] for other in tasks[:index]]:
            yield Fault("this benchmark is there twice", where=pointer, found=show(task["name"]),
                        expected="a name of its own")  # fmt: skip
    made = "16bit" in document.get("export", {}).get("merged", [])
    for index in (index for index, task in enumerate(tasks) if task.get("merged") and not made):
        yield Fault("nothing is merged that this could be measured of", where=f"/evaluation/tasks/{index}/merged",
                    found="true", expected='export.merged with "16bit"')  # fmt: skip
    own = {task["name"]: figures_of(task["name"], task["rows"]) for task in tasks if "rows" in task}
    for index, gate in enumerate(evaluation.get("gates", [])):
        if not NAME.fullmatch(metric := gate["metric"]):
            continue
        known = own.get(metric.partition(":")[0])  # those of lm-eval's tasks lm-eval alone knows
        if not tasks or (known and metric not in known):
            yield Fault("a gate on what is not measured", where=f"/evaluation/gates/{index}/metric",
                        found=show(metric), expected=" or ".join(known or ["evaluation.tasks"]))  # fmt: skip


def figures_of(name: str, rows: Json) -> list[str]:
    """What is measured of rows of one's own: the likeliest of their choices, or an answer."""
    chosen = {"choices", "choices_column"} & rows.keys()
    return [f"{name}:{metric}" for metric in (("acc", "acc_norm") if chosen else ("exact_match",))]
