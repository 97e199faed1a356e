"""Benchmarks by lm-eval; with `task_rows` the only module that imports it.

Its tasks load their rows when they are built. So they are built while there is a network, from data sets that were
brought here first, at one commit each; what they measure later needs none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.evaluation.metrics.record import Counts
from job.evaluation.metrics.task import NAME, OTHERS, task_metric
from job.evaluation.own_tasks import DOCUMENTS, NO_FILTER, own_task, source_of, write_documents
from job.evaluation.scores import Rows
from job.evaluation.task_faults import fit, runs_code
from job.evaluation.task_names import require_known, task_names
from job.evaluation.task_rows import rows_brought_here
from job.source.benchmarks import FetchedSet
from job.source.data import FetchedSource, fetch_source
from job.spec import GateSpec, TaskSpec

SEED = 1234  # of the choice of examples for few-shot prompts, as lm-eval's command line has it


@dataclass(frozen=True)
class TaskFigure:
    """One figure: of the documents of these tasks, what `metric` says of answers that went through `filter`."""

    name: str
    tasks: tuple[str, ...]
    metric: str
    filter: str


@dataclass(frozen=True)
class Brought:
    """One entry of the spec, number `index`, whose documents are here: its data sets by the names that the task has."""

    index: int
    spec: TaskSpec
    sets: dict[str, FetchedSet]


@dataclass
class Benchmark:
    """One entry of the spec, number `index`, its rows loaded. `left_out`: figures that are not means over documents, or
    in which better is not what their names say elsewhere.
    """

    index: int
    spec: TaskSpec
    loaded: dict[str, Any]
    sources: Sequence[FetchedSet | FetchedSource]
    sets: dict[str, FetchedSet]
    figures: list[TaskFigure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def fetched_bytes(self) -> int:
        """Of files that were not on this machine."""
        files = chain.from_iterable(source.files for source in self.sources if "://" in _address(source))
        return sum(file.stat().st_size for file in files)

    def brought(self) -> Brought:
        return Brought(self.index, self.spec, self.sets)

    def facts(self) -> dict[str, Any]:
        """For the statistics."""
        tasks = self.loaded["tasks"].values()
        limit = self.spec.limit
        sizes = [len(task.eval_docs) for task in tasks]
        return {
            "name": self.spec.name,
            "few_shot": max((task.get_config("num_fewshot") or 0 for task in tasks), default=0),
            "documents": sum(size if limit is None else min(size, limit) for size in sizes),
            "of": sum(sizes),
            "versions": {name: str(task.VERSION) for name, task in self.loaded["tasks"].items()},
            "data": [
                {"source": _address(source), "revision": source.revision, "sha256": source.sha256}
                for source in self.sources
            ],
        }


def _address(source: FetchedSet | FetchedSource) -> str:
    return source.source if isinstance(source, FetchedSet) else source.spec.source


def version() -> str:
    from importlib.metadata import version as installed

    return installed("lm-eval")


def load_benchmarks(
    specs: Sequence[TaskSpec], folder: Path, revisions: Mapping[str, str], max_new_tokens: int
) -> list[Benchmark]:
    """Each with its rows, brought to `folder`. Raises as `fetch_data` does, `InputError` for a task that is not known,
    for rows that are none of a task, and for a task of two entries.
    """
    found = [_load(spec, index, folder / f"{index}", revisions, max_new_tokens) for index, spec in enumerate(specs)]
    of: dict[str, int] = {}
    for index, name in ((index, figure.name) for index, one in enumerate(found) for figure in one.figures):
        if of.setdefault(name, index) != index:
            raise InputError("this is measured twice", where=f"/evaluation/tasks/{index}", found=name,
                             expected=f"no task that /evaluation/tasks/{of[name]} has")  # fmt: skip
    return found


def require_measured(found: Sequence[Benchmark], gates: Sequence[GateSpec]) -> None:
    """Raises `InputError` for a gate on a figure of benchmarks that none of these has."""
    whole = [figure.name for benchmark in found for figure in benchmark.figures]
    merged = [figure.name for benchmark in found if benchmark.spec.merged for figure in benchmark.figures]
    for index, gate in enumerate(gates):
        known = merged if "merged" in (gate.of or ()) else whole
        if NAME.fullmatch(gate.metric) and gate.metric not in known:
            raise InputError("no benchmark measures this", where=f"/evaluation/gates/{index}/metric", found=gate.metric,
                             expected=f"one of {', '.join(known)}")  # fmt: skip


def left_out(found: Sequence[Benchmark]) -> list[str]:
    """What is not measured of them, in words: nothing, or one text."""
    names = [name for benchmark in found for name in benchmark.left_out]
    why = "no means over documents, or better where others of that name are worse"
    return [f"not measured, as they are {why}: {', '.join(names)}"] if names else []


def load_brought(benchmarks: Sequence[Brought], folder: Path, max_new_tokens: int) -> list[Benchmark]:
    """Those whose documents an earlier `load_benchmarks` has brought to `folder`."""
    return [
        _load(one.spec, one.index, folder / f"{one.index}", {}, max_new_tokens, brought=one.sets) for one in benchmarks
    ]


def _load(
    spec: TaskSpec, index: int, folder: Path, revisions: Mapping[str, str], max_new_tokens: int,
    brought: Mapping[str, FetchedSet] | None = None,
) -> Benchmark:  # fmt: skip
    pointer = f"/evaluation/tasks/{index}"
    sources: list[FetchedSet | FetchedSource] = []
    sets: dict[str, FetchedSet] = {}
    if spec.rows:
        from lm_eval.tasks import TaskManager

        if brought is None:
            fetched = fetch_source(source_of(spec), pointer, folder, revisions)
            write_documents(spec.rows, fetched, pointer, folder)
            sources = [fetched]
        config = own_task(spec.name, spec.rows, folder / DOCUMENTS, max_new_tokens)
        loaded = dict(TaskManager(include_defaults=False).load([config]))
    else:
        require_known(spec.name, f"{pointer}/name", task_names())
        manager = _manager_of(spec.name)
        require_known(spec.name, f"{pointer}/name", manager.all_tasks)
        with rows_brought_here(spec, pointer, folder, revisions, brought) as sets, fit(spec.name, pointer):
            loaded = dict(manager.load([spec.name]))
        sources = list(sets.values())
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise runs_code(spec.name, pointer)
        _set_few_shot(task, spec.few_shot, f"{pointer}/few_shot")
    found = Benchmark(index, spec, loaded, sources, sets)
    _find_figures(found)
    if not found.figures:
        raise InputError("nothing that this task measures is a mean over its documents", where=pointer,
                         found=", ".join(found.left_out))  # fmt: skip
    return found


def _manager_of(name: str) -> Any:
    """lm-eval's index of tasks: of the folder where this one is; for groups and tags of all, which takes seconds."""
    from lm_eval import tasks

    if folders := task_names()[name]:
        near = tasks.TaskManager(include_defaults=False, include_path=sorted(folders))
        if name in near.all_subtasks:
            return near
    return _manager_of_all()


@cache
def _manager_of_all() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _set_few_shot(task: Any, wanted: int | None, pointer: str) -> None:
    """As lm-eval's command line does: a task that says 0 by itself keeps it. Raises `InputError` where there are no
    other documents for so many.
    """
    own = task.get_config("num_fewshot")
    if own is None or (wanted is not None and own != 0):
        task.set_config(key="num_fewshot", value=wanted or 0)
    examples, others = task.get_config("num_fewshot"), len(task.eval_docs) - 1
    if task.fewshot_cfg.split == task.config.test_split and examples > others:
        raise InputError("there are not so many other documents", where=pointer, found=f"{examples}",
                         expected=f"at most {others}")  # fmt: skip


# --------------------------------------------------------------------------------------------------------- figures


def _find_figures(found: Benchmark) -> None:
    """Of a group whose mean goes by the number of documents, those of the group; else those of each task."""
    tasks, groups = found.loaded["tasks"], found.loaded.get("groups") or {}
    group = groups.get(found.spec.name)
    wanted = {entry.metric for entry in (group.aggregate_metric_list or ()) if entry.weight_by_size} if group else set()
    together: dict[str, list[tuple[str, str, str]]] = {}
    for name, task in tasks.items():
        for metric, aggregation in task.aggregation().items():
            for kept in task._filters:
                owner = found.spec.name if metric in wanted else name
                title = f"{owner}:{metric}" + ("" if kept.name == NO_FILTER else f",{kept.name}")
                together.setdefault(title, []).append((name, metric, kept.name))
                lower = task.higher_is_better().get(metric) is False
                known = bool(NAME.fullmatch(title)) and task_metric(title).lower_is_better == lower
                if not (known and _is_mean(metric, aggregation)) and title not in found.left_out:
                    found.left_out.append(title)
    for title, parts in together.items():
        if title not in found.left_out:
            found.figures.append(TaskFigure(title, tuple(name for name, _, _ in parts), *parts[0][1:]))


def _is_mean(metric: str, aggregation: Any) -> bool:
    from lm_eval.api.registry import get_aggregation

    return metric in OTHERS or aggregation is get_aggregation("mean")


def run_benchmarks(
    benchmarks: Sequence[Benchmark], model: Any, tokenizer: Any, batch_rows: int, progress: Callable[[int], object]
) -> dict[str, Rows]:
    """By figure, what each document adds. The model must be in inference mode. `progress` gets how many are done."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with _tied_as_it_is(model):
        lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_rows)
    rows: dict[str, Rows] = {}
    for done, benchmark in enumerate(benchmarks, 1):
        for task in benchmark.loaded["tasks"].values():
            task.set_fewshot_seed(seed=SEED)  # each model has the same examples
        chat = benchmark.spec.chat_template
        with fit(benchmark.spec.name, f"/evaluation/tasks/{benchmark.index}"):
            found = evaluate(lm, benchmark.loaded, limit=benchmark.spec.limit, bootstrap_iters=0, log_samples=True,
                             apply_chat_template=chat, fewshot_as_multiturn=chat)  # fmt: skip
        rows |= {figure.name: _rows(figure, found["samples"]) for figure in benchmark.figures}
        progress(done)
    return rows


@contextmanager
def _tied_as_it_is(model: Any) -> Iterator[None]:
    """lm-eval ties weights of what it is given, which is loaded already; PEFT's wrappers of tied layers refuse that."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


def _rows(figure: TaskFigure, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Counts | None]:
    return [
        _counts(sample[figure.metric]) if figure.metric in sample else None
        for task in figure.tasks
        for sample in sorted(samples[task], key=lambda sample: int(sample["doc_id"]))
        if sample["filter"] == figure.filter
    ]


def _counts(value: Any) -> Counts:
    """A figure of one document, or a log-likelihood and what it is of."""
    return (float(value[0]), float(value[1])) if isinstance(value, tuple | list) else (float(value), 1.0)
