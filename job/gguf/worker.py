"""The process in which GGUF files are made and checked: native code can crash, and its memory goes with it.

    python -m job.gguf.worker REQUEST_JSON RESULT_JSON

Each step is a record with the arguments of the function that it runs; paths are absolute.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import GateError, InputError
from job.gguf.check import Checked, check, check_lora
from job.gguf.convert import convert
from job.gguf.encode import supported
from job.gguf.expected import Expected
from job.gguf.gpu_quantise import quantise_on_device
from job.gguf.header import Written
from job.gguf.lora import write_lora
from job.gguf.quality import Against
from job.gguf.quantise import planned_types, quantise
from job.gguf.sizes import Planned, plan
from job.gguf.split import Parts, split
from job.gguf.vocabulary import Rehearsed, rehearse
from job.host.child import run_child, serve
from job.host.records import build

WORKER = "job.gguf.worker"
MAKING = "making"  # the folder of files that are being quantised


@dataclass(frozen=True)
class Convert:
    model: Path
    target: Path
    type_name: str
    name: str
    threads: int


@dataclass(frozen=True)
class Quantise:
    source: Path
    target: Path
    type_name: str
    imatrix: Path | None
    threads: int
    device: str


@dataclass(frozen=True)
class Check:
    file: Path
    key: str
    type_name: str
    source: Path | None
    expected: Expected
    against: Against


@dataclass(frozen=True)
class CheckLora:
    base: Path
    lora: Path
    key: str
    type_name: str
    against: Against


@dataclass(frozen=True)
class WriteLora:
    adapter: Path
    model: Path
    target: Path
    type_name: str
    name: str


@dataclass(frozen=True)
class Split:
    file: Path
    max_bytes: int


@dataclass(frozen=True)
class GgufPlan:
    model: Path
    scratch: Path
    types: list[str]
    with_imatrix: bool
    longest_tokens: int = 0


@dataclass(frozen=True)
class Rehearse:
    model: Path
    target: Path
    expected: Expected


Operation = Convert | Quantise | Check | CheckLora | WriteLora | Split | GgufPlan | Rehearse


@dataclass(frozen=True)
class GgufRequest:
    """What to do, in this order."""

    steps: tuple[Operation, ...]


@dataclass(frozen=True)
class GgufAnswer:
    """What each step has found, in their order."""

    steps: tuple[Written | Checked | Parts | Planned | Rehearsed, ...]


def handle(request: GgufRequest) -> GgufAnswer:
    """Raises the `JobError` of the first step that fails."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Threads that wait for each other sleep instead of spinning: on cores shared with others that is ten times faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ["GGML_NO_BACKTRACE"] = "1"  # a crash ends at once, not after a debugger has read all of torch
    return GgufAnswer(tuple(FUNCTIONS[type(step)](**vars(step)) for step in request.steps))


def results(answer: Any) -> tuple[Any, ...]:
    """What each step has found, from the process's answer as JSON."""
    return tuple(build(GgufAnswer, answer).steps)


def try_beforehand(step: Operation, folder: Path, what: str) -> Any:
    """What one step finds before anything is trained. Raises `InputError` where native code crashes: it is the model
    that is wrong then, not what was made of it.
    """
    try:
        (found,) = results(run_child(WORKER, GgufRequest((step,)), folder, what, answer=dict))
    except GateError as crash:
        raise InputError(*crash.faults).at("/model/source") from crash
    return found


def _quantise(source: Path, target: Path, type_name: str, imatrix: Path | None, threads: int, device: str) -> Written:
    """On the GPU, if one may be used and the types are among those encoded there: the same bytes, much sooner. The file
    appears when it is whole: others may wait for it.
    """
    made = target.parent / MAKING / target.name
    made.parent.mkdir(exist_ok=True)
    if device != "cpu" and imatrix is None and supported(planned_types(source, type_name, False).values()):
        written = quantise_on_device(source, made, type_name, device)
    else:
        written = quantise(source, made, type_name, imatrix, threads)
    made.replace(target)
    return written


def _check(file: Path, **more: Any) -> Checked:
    """Of the file, or the first of those that it was split into: it opens the others."""
    parts = file.parent.glob(f"{file.stem}-00001-of-*.gguf")
    return check(file if file.exists() else min(parts, default=file), **more)


FUNCTIONS: dict[type[Operation], Callable[..., Any]] = {
    Convert: convert, Quantise: _quantise, Check: _check, CheckLora: check_lora, WriteLora: write_lora, Split: split,
    GgufPlan: plan, Rehearse: rehearse,
}  # fmt: skip

if __name__ == "__main__":
    serve(handle)
