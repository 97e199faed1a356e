"""Rows of lm-eval's own tasks: from data sets that are fetched here, instead of by the tasks themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.evaluation.task_faults import no_code
from job.source.benchmarks import FetchedSet, fetch_set
from job.source.data import HUB
from job.spec import TaskSpec

FILES = {"json": (".json", ".jsonl", ".ndjson"), "csv": (".csv", ".tsv"), "parquet": (".parquet",)}


@contextmanager
def rows_brought_here(
    spec: TaskSpec, pointer: str, folder: Path, revisions: Mapping[str, str], brought: Mapping[str, FetchedSet] | None
) -> Iterator[dict[str, FetchedSet]]:
    """Within, tasks that are built get their rows from data sets below `folder`, fetched once each, or `brought`
    before. By what a task calls them: its data set and subset.
    """
    from datasets import load_dataset
    from lm_eval.api.task import ConfigurableTask

    sets: dict[str, FetchedSet] = {}

    def fetched(path: str, name: str | None) -> FetchedSet:
        if file := next((known for known in sets.values() if known.file), None):
            return file  # which has the documents of all
        key = f"{path} {name or ''}"
        if brought is not None:
            sets[key] = brought[key]
        elif key not in sets:
            address = spec.source or f"{HUB}{path}"
            subset = spec.subset or name
            where = (
                f"{pointer}/source" if spec.source else f"{pointer}/name" if not sets else f"{pointer}/name/{len(sets)}"
            )
            sets[key] = fetch_set(address, subset, where, folder / f"{len(sets)}", revisions)
        return sets[key]

    def download(self: Any, dataset_kwargs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if callable(self.config.custom_dataset) or not self.DATASET_PATH or "data_files" in (dataset_kwargs or {}):
            raise InputError("this task brings its rows by itself", where=pointer, found=str(self.config.task),
                             expected="a task whose rows are a data set")  # fmt: skip
        found, cache = fetched(self.DATASET_PATH, self.DATASET_NAME), str(folder / "cache")
        if found.file:
            _read_one_file(self)
            self.dataset = load_dataset(_kind(found.file), data_files={"test": str(found.file)}, cache_dir=cache)
        else:
            self.dataset = load_dataset(str(found.folder), name=found.subset, cache_dir=cache)

    own = ConfigurableTask.download
    ConfigurableTask.download = download
    try:
        with no_code(spec.name, pointer):
            yield sets
    finally:
        ConfigurableTask.download = own


def _read_one_file(task: Any) -> None:
    """One split is all there is; examples of few-shot prompts that are not the task's own are other rows of it."""
    task.config.training_split = task.config.validation_split = None
    task.config.test_split = "test"
    task.fewshot_cfg.split = None if task.fewshot_cfg.samples is not None else "test"


def _kind(file: Path) -> str:
    """What the `datasets` library reads it with."""
    plain = file.name.lower().removesuffix(".gz")
    return next((kind for kind, ends in FILES.items() if plain.endswith(ends)), "text")
