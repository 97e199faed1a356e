"""What cannot fit is refused before time is spent on it. Lower bounds only: what passes here may still not fit."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from job.data.build import Prepared
from job.errors import CapacityError, Fault, InputError, JobError, disk_is_full
from job.host.cgroup import available_bytes
from job.host.device import DEVICE_VARIABLE, cards, gpu_capability, wanted_device
from job.plan.cards import FP8_CAPABILITY
from job.plan.gpu_memory import least_bytes, most_processes
from job.spec import JobSpec, TaskSpec, TrainingSpec
from job.spec.optimizers import moment_bytes
from job.store.base import local_path
from job.tracking import TRACKERS
from job.training.methods.vllm_answers import fault_of_vllm
from job.weights.shapes import read_shapes

GPUS = "/resources/gpus"


def require_trackers(names: tuple[str, ...]) -> None:
    """Raises `InputError` for a tracker whose package is not installed, or that has no address."""
    faults = []
    for tracker in (TRACKERS[name] for name in names):
        if importlib.util.find_spec(tracker.module) is None:
            hint = "Install locks/trackers.txt, build the image with TRACKERS=1, or leave it out"
            faults.append(Fault("this tracker is not installed", where="/tracking", found=tracker.name, hint=hint))
        elif tracker.needed and not os.environ.get(tracker.needed):
            hint = f"Set {tracker.needed} in the environment; without it nothing would be kept"
            faults.append(Fault("this tracker has no address", where="/tracking", found=tracker.name, hint=hint))
    if faults:
        raise InputError(*faults)


def require_benchmarks(tasks: Sequence[TaskSpec] | None) -> None:
    """Raises `InputError` for benchmarks where lm-eval is not installed."""
    if tasks and importlib.util.find_spec("lm_eval") is None:
        hint = "Install locks/benchmarks.txt (make benchmarks), build the image with BENCHMARKS=1, or leave them out"
        found = ", ".join(task.name for task in tasks)
        raise InputError("lm-eval is not installed", where="/evaluation/tasks", found=found, hint=hint)


def require_vllm(training: TrainingSpec) -> None:
    """Raises `InputError` where vLLM is to give the answers, and there is none here that TRL and torch go with."""
    if training.grpo and training.grpo.use_vllm and (wrong := fault_of_vllm()):
        found, expected = wrong
        raise InputError(
            "vLLM, which is to give the answers, is not installed as it should be",
            where="/training/grpo/use_vllm",
            found=found,
            expected=expected,
            hint="Install it beside the job's packages (pip install --no-deps, or a venv laid over them), or leave "
            "use_vllm out: the engine gives the answers then",
        )


def require_disk(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises `CapacityError` with needed and free bytes if `what` cannot fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise CapacityError(
            f"not enough disk for {what}",
            where=str(folder),
            found=f"{free} bytes free",
            expected=f"{needed_bytes} bytes",
            hint="Give the pod more ephemeral storage, or set TUNEJOB_WORKDIR to a larger volume",
        )


def checkpoint_bytes(model: Any, optimizer: str, keeps_best: bool) -> int:
    """At least what a checkpoint takes: trained weights, the best ones too if kept, the optimiser's moments."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights: int = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    moments: int = sum(parameter.numel() * moment_bytes(optimizer, parameter.element_size()) for parameter in trained)
    return weights * (2 if keeps_best else 1) + moments


def require_checkpoints(folder: Path, spec: JobSpec, model: Any, optimizer: str) -> None:
    """Raises `CapacityError` unless `folder` has room for two checkpoints: one is written while another is stored."""
    require_disk(folder, 2 * checkpoint_bytes(model, optimizer, spec.training.keep == "best"), "two checkpoints")


def with_disk_figures(error: JobError, *folders: Path | str) -> JobError:
    """A full disk, with the figures of the fullest disk of `folders`; those that are addresses or are not there do
    not count.

    Anything else, and what has its figures already, stays itself.
    """
    disks = {folder: shutil.disk_usage(folder) for folder in map(Path, folders) if folder.is_dir()}
    first = error.faults[0] if error.faults else Fault("")
    if first.found or not disks or not disk_is_full(error):
        return error
    folder = min(disks, key=lambda folder: disks[folder].free)
    hint = f"Make the disk of {folder} larger, then run the same spec again"
    named = replace(
        first,
        found=f"{disks[folder].free} bytes free",
        expected=f"more than {disks[folder].total} bytes in all",
        hint=hint,
    )
    return CapacityError(named, *error.faults[1:])


def require_apart(workdir: Path, output_uri: str) -> None:
    """Raises `InputError` if scratch, which is emptied, and a local output lie in one another."""
    if "://" in output_uri:
        return
    output = local_path(output_uri).resolve()
    if output.is_relative_to(workdir) or workdir.is_relative_to(output):
        raise InputError(
            "output and scratch directory lie in one another",
            where="/output/uri",
            found=str(output),
            expected=f"a directory apart from {workdir}",
            hint="Choose another --workdir or output",
        )


def require_directory(uri: str, pointer: str) -> None:
    """Raises `InputError` for a local place that is not a directory and cannot become one."""
    if "://" in uri:
        return
    path = Path(os.path.abspath(local_path(uri)))
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if path == Path(path.anchor) or not there.is_dir():
        what = "a file is where the directory should be" if there.is_file() else "this cannot be a run's directory"
        raise InputError(
            what, where=pointer, found=ascii(str(there)), expected="a directory of its own, which the run makes"
        )


def require_device(spec: JobSpec, kind: str) -> None:
    """Raises `CapacityError` for what only a GPU can do, where training would be on the CPU (`kind` "cpu")."""
    needs = [
        (spec.data.packing, "/data/packing", "true", "false: on the CPU packed rows would see each other"),
        (spec.model.precision == "8bit", "/model/precision", "8bit", "4bit or 16bit"),
        (spec.training.compute == "fp8", "/training/compute", "fp8", "auto or stock"),
    ]
    faults = [
        Fault("this needs a GPU", where=pointer, found=found, expected=expected)
        for needed, pointer, found, expected in needs
        if needed
    ]
    if kind == "cpu" and faults:
        raise CapacityError(*faults)
    if spec.training.compute == "fp8" and kind == "cuda":
        require_fp8(gpu_capability())


def require_fp8(capability: str | None) -> None:
    """Raises `CapacityError` for a GPU of a compute capability, such as "8.0", that does not multiply in 8 bits."""
    if capability and float(capability) < float(FP8_CAPABILITY):
        raise CapacityError(
            "this GPU does not multiply numbers of 8 bits",
            where="/training/compute",
            found=f"fp8 on compute capability {capability}",
            expected=f"at least {FP8_CAPABILITY} (L4, L40S, RTX 4090, H100 and later)",
            hint="Set compute to auto, or use such a GPU",
        )


def processes(spec: JobSpec, kind: str) -> int:
    """How many train together on this machine, one on each GPU (`kind` "cuda"), or on a CPU that was asked
    for by name. Raises `CapacityError` where there are fewer GPUs than the spec wants.
    """
    wanted, most = spec.resources.gpus, most_processes(spec) // spec.resources.nodes
    there = max(len(cards()), 1) if kind == "cuda" else 1
    if wanted == "all":
        return min(there, most)
    asked_for_cpu = kind == "cpu" and wanted_device() == "cpu"
    if not asked_for_cpu and int(wanted) > there:
        found = f"{there} visible" if kind == "cuda" else "none"
        hint = f"Run it with more GPUs visible; {DEVICE_VARIABLE}=cpu tries it with as many processes on the CPU"
        raise CapacityError("fewer GPUs than are wanted", where=GPUS, found=found, expected=str(wanted), hint=hint)
    return int(wanted)


def cards_of_run(spec: JobSpec) -> list[str]:
    """Names of the GPUs of this machine that a run may use, as far as they are there."""
    wanted = spec.resources.gpus
    return cards() if wanted == "all" else cards()[: int(wanted)]


def require_embeddings(rows: int, prepared: Prepared) -> None:
    """Raises `InputError` if a token of the data, or one that pads or ends, has no row in the model's embedding."""
    import pyarrow.compute as pc

    ids = prepared.train.data.column("input_ids")
    largest = max(
        pc.max(pc.list_flatten(ids)).as_py(), prepared.tokenizer.pad_token_id, *prepared.report.stop_token_ids
    )
    if largest >= rows:
        raise InputError(
            "the tokenizer has tokens that the model does not know",
            where="/model/source",
            found=f"token id {largest}",
            expected=f"ids below {rows}",
            hint="Use the tokenizer the weights were trained with",
        )


def parameters(model_dir: Path) -> int:
    """Number of weights in the model's safetensors headers; packed 4-bit bases count their packed bytes."""
    return read_shapes(model_dir).parameters


def require_memory(model_dir: Path, spec: JobSpec, device: dict[str, Any]) -> None:
    """Raises `CapacityError` if the weights alone (with gradients and moments when all are trained) exceed the memory.

    On a GPU that is the card's memory, on the CPU what the control group and the host have left.
    """
    count = parameters(model_dir)
    on_cpu = device["kind"] == "cpu"
    in_fp32 = on_cpu and spec.model.precision in ("16bit", "full")
    needed = int(least_bytes(spec.model.precision, count) + (least_bytes("16bit", count) if in_fp32 else 0))
    if spec.resources.spreads and not on_cpu:  # whole before the training and after it
        needed = max(needed // spec.resources.known_gpus, int(least_bytes("16bit", count)))
    total = available_bytes() if on_cpu else device["total_memory_bytes"]
    if needed > total:
        raise CapacityError(
            f"the weights of this model do not fit on {device['name']}",
            where="/model/precision",
            found=f"{total} bytes in all",
            expected=f"at least {needed} bytes for {count} parameters as {spec.model.precision}",
            hint="Use a larger GPU or a smaller precision",
        )


def require_ram(needed_bytes: int, what: str) -> None:
    """Raises `CapacityError` if neither the host nor the control group has that much memory left."""
    free = available_bytes()
    if free < needed_bytes:
        raise CapacityError(
            f"not enough memory for {what}",
            found=f"{free} bytes free",
            expected=f"{needed_bytes} bytes",
            hint="Give the pod more memory",
        )
