"""Benchmarks of a spec, their documents brought here as a run will bring them."""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from job.data.tokenizer import load_tokenizer
from job.evaluation.benchmarks import left_out, load_benchmarks, require_measured
from job.evaluation.task_work import TaskWork, require_room, work_of
from job.spec import JobSpec


@dataclass(frozen=True)
class SeenTasks:
    """What the benchmarks ask; `remarks` on what they do not measure."""

    work: tuple[TaskWork, ...] = ()
    remarks: tuple[str, ...] = ()


def see_tasks(spec: JobSpec, model_dir: Path, workdir: Path) -> SeenTasks:
    """Without lm-eval only what the spec says. Raises as the data stage of a run does."""
    evaluation = spec.evaluation
    if not evaluation.tasks:
        return SeenTasks()
    if importlib.util.find_spec("lm_eval") is None:
        return SeenTasks(tuple(map(TaskWork.unknown, evaluation.tasks)))
    tokenizer = load_tokenizer(model_dir)
    with redirect_stderr(io.StringIO()):  # their bars
        found = load_benchmarks(evaluation.tasks, workdir / "benchmarks", {}, evaluation.max_new_tokens)
        require_measured(found, evaluation.gates)
        require_room(found, model_dir, tokenizer)
        work = tuple(work_of(one, index, tokenizer) for index, one in enumerate(found))
    return SeenTasks(work, tuple(left_out(found)))
