"""What an answer is worth to a training by reward: the evaluation's metrics, its form, its length, what another model
says of it, or an own file.

Each gives a number for an answer and its reference, mostly from 0 to 1, or None where the reference does not fit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from job.errors import InputError, JobError, PolicyError
from job.evaluation.judge_scores import Scorer
from job.evaluation.metrics import METRICS, Options
from job.host.bounded import processor_seconds

FORMAT, LENGTH, JUDGE, FILE = "format", "length", "judge", "file"
CORPUS = ("bleu", "chrf")  # metrics that are not a mean over answers
OF_ANSWERS = tuple(name for name, metric in METRICS.items() if metric.needs_answers and name not in CORPUS)
REWARDS = (*OF_ANSWERS, FORMAT, LENGTH, JUDGE, FILE)
OPTIONS = {FORMAT: "regex", LENGTH: "at_most", JUDGE: "judge", FILE: "file"} | {
    name: METRICS[name].option for name in OF_ANSWERS if METRICS[name].option
}
ALLOWED = "TUNEJOB_REWARD_FILES"  # of the environment, with the value 1
FUNCTION = "reward"  # of an own file
SECONDS = 3.0  # of the processor, for one answer

Reward = Callable[[str, str], float | None]


def reward_of(asked: Any, pointer: str) -> Reward:
    """Of an entry of `training.grpo.rewards` other than a judge, which is at `pointer`. Raises as `own_reward` does."""
    if asked.metric == FILE:
        return own_reward(asked.file, f"{pointer}/file")
    if asked.metric == LENGTH:
        return lambda answer, _: float(len(answer) <= asked.at_most)
    if asked.metric == FORMAT:
        whole = re.compile(asked.regex)

        def formed(answer: str, _: str) -> float:
            with processor_seconds(SECONDS, f"{pointer}/regex"):
                return float(whole.fullmatch(answer) is not None)

        return formed
    metric, options = METRICS[asked.metric], Options(asked.regex, asked.json_schema)

    def measured(answer: str, reference: str) -> float | None:
        try:
            counts = metric.counts(answer, reference, options)
        except PolicyError as error:  # which names the option of the evaluation
            here = f"{pointer}/{metric.option}"
            raise PolicyError(*(replace(fault, where=here) for fault in error.faults)) from error
        return None if counts is None else metric.figure(counts)

    return measured


@cache
def scorer_of(asked: Any, pointer: str, url: str) -> Scorer:
    """Of an entry's `judge`; it remembers every verdict, also where a step is taken again in smaller batches.
    `url`: of the endpoint.
    """
    return Scorer(asked, pointer)


@cache
def own_reward(file: str, pointer: str) -> Reward:
    """The function `reward` of a Python file, as it was when it was first asked for: a run leaves the directory that
    paths begin in. Raises `PolicyError` unless the environment lets code of a spec's files run, `InputError` for a file
    that has no such function.
    """
    require_allowed(file, pointer)
    own_sha256(file)
    spec = importlib.util.spec_from_file_location("own_reward", file)
    if spec is None or spec.loader is None:
        raise InputError("not a Python file", where=pointer, found=ascii(file), expected="a path that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _failed("this file cannot be run", error, pointer) from error
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        expected = f"def {FUNCTION}(answer, reference) -> float"
        raise InputError("the file has no such function", where=pointer, found=ascii(file), expected=expected)

    def own(answer: str, reference: str) -> float | None:
        try:
            value = function(answer, reference)
            number = None if value is None else float(value)
        except JobError:
            raise  # a signal, for one
        except (Exception, SystemExit) as error:
            raise _failed(f"{FUNCTION} has failed on an answer", error, pointer) from error
        if number is not None and not math.isfinite(number):
            raise InputError(f"{FUNCTION} has given no number", where=pointer, found=str(number))
        return number

    return own


def _failed(what: str, error: BaseException, pointer: str) -> InputError:
    return InputError(what, where=pointer, found=f"{type(error).__name__}: {error}")


def require_allowed(file: str, pointer: str) -> None:
    """Raises `PolicyError` where the environment does not let a spec's own code run, `InputError` for no file."""
    if os.environ.get(ALLOWED) != "1":
        raise PolicyError("a reward of its own is code, which is not run", where=pointer, found=ascii(file),
                          expected="a metric", hint=f"Whoever runs the job may allow it: {ALLOWED}=1")  # fmt: skip
    if not Path(file).is_file():
        raise InputError("there is no such file", where=pointer, found=ascii(file), expected="a Python file")


@cache
def own_sha256(file: str) -> str:
    """Of the file as it was when it was first asked for."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def own_code(grpo: Any) -> list[str]:
    """Hashes of the files of a spec's section `grpo`, if it has one."""
    return [own_sha256(file) for file in grpo.files.values()] if grpo else []


def first_and_last(history: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Of the first and the last tenth of the steps that have it, the mean of each reward."""
    found: dict[str, list[float]] = {}
    for line in history:
        for name in line:
            if name.partition("_")[0] == "reward":
                found.setdefault(name, []).append(line[name])
    parts = {name: max(1, len(values) // 10) for name, values in found.items()}
    return {
        name: [round(sum(part) / len(part), 6) for part in (values[: parts[name]], values[-parts[name] :])]
        for name, values in found.items()
    }
