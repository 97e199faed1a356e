"""What the run cost, per stage: wall time, peak GPU memory, peak RSS with children, disk. Written on failure too.

Figures of GPU memory are the allocator's own (`torch.cuda.max_memory_*`), in bytes; RSS and disk are sampled.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from job.host.child import ENDED, ChildMemory
from job.host.memory import MemorySampler
from job.host.planned import beside

SAMPLE_SECONDS = 0.5
PACKAGES = (
    "torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate", "unsloth", "unsloth_zoo",
    "huggingface_hub", "safetensors", "tokenizers", "boto3", "jsonschema", "sacrebleu",
)  # fmt: skip


@dataclass
class Phase:
    """One stage's cost; `children` ended in it. GPU figures are 0 without a GPU."""

    name: str
    wall_seconds: float = 0.0
    peak_gpu_allocated_bytes: int = 0
    peak_gpu_reserved_bytes: int = 0
    peak_rss_bytes: int = 0
    peak_disk_bytes: int = 0
    children: list[ChildMemory] = field(default_factory=list)


class DiskUse:
    """How much more disk the files below `folder` take than at the beginning, at most.

    Only they: what other programs do to the same disk is not this run's. A file of several names counts once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0.0
        self._start_bytes = allocated_bytes(folder)
        self.peak_bytes = 0

    def sample(self) -> None:
        """Does nothing while a look at every file would take more than a hundredth of the time."""
        began = time.monotonic()
        if began < self._next:
            return
        self.peak_bytes = max(self.peak_bytes, allocated_bytes(self._folder) - self._start_bytes)
        self._next = began + 100 * (time.monotonic() - began)


def allocated_bytes(folder: Path) -> int:
    """What the files below `folder` take of the disk; those that go meanwhile count as gone."""
    blocks: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                found = os.lstat(os.path.join(place, name))
                blocks[found.st_dev, found.st_ino] = found.st_blocks
    return 512 * sum(blocks.values())


@dataclass
class Stats:
    """Everything `stats.json` holds. Each stage adds its figures; `document` is valid at any moment."""

    run_id: str
    name: str
    workdir: Path
    phases: list[Phase] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    delivered: dict[str, Any] = field(default_factory=dict)
    effective: dict[str, Any] = field(default_factory=dict)
    planned: dict[str, Any] = field(default_factory=dict)
    price_per_hour: float | None = None
    failure: dict[str, Any] | None = None
    report: list[str] = field(default_factory=list)
    current: str = "start"
    _started: float = field(default_factory=time.monotonic)
    _elsewhere: tuple[int, int] = (0, 0)  # of GPU memory, in this stage's processes: allocated, reserved
    _disk: DiskUse | None = None  # of the whole run, from its first stage on

    @contextmanager
    def phase(self, name: str, children: bool = False) -> Iterator[None]:
        """Measures one stage, with worker processes if it has `children`; its figures are kept also when it fails."""
        self.current, self._elsewhere = name, (0, 0)
        start, ended, disk = time.monotonic(), len(ENDED), DiskUse(self.workdir)
        whole = self._disk = self._disk or DiskUse(self.workdir)

        def sample() -> None:
            disk.sample()
            whole.sample()

        memory = MemorySampler(os.getpid(), SAMPLE_SECONDS, children, sample)
        forget_gpu_peaks()
        memory.start()
        try:
            yield
        finally:
            memory.finish()
            allocated, reserved = gpu_peaks()
            self.phases.append(
                Phase(
                    name,
                    round(time.monotonic() - start, 3),
                    max(allocated, self._elsewhere[0]),
                    max(reserved, self._elsewhere[1]),
                    memory.peak_rss_bytes,
                    disk.peak_bytes,
                    ENDED[ended:],
                )
            )

    def met_gpu_peak(self, allocated_bytes: int, reserved_bytes: int) -> None:
        """What a process of this stage has held at its peak, on a card of its own."""
        allocated, reserved = self._elsewhere
        self._elsewhere = max(allocated, allocated_bytes), max(reserved, reserved_bytes)

    def document(self) -> dict[str, Any]:
        return {
            "version": 1,
            "run_id": self.run_id,
            "name": self.name,
            "status": "failed" if self.failure else "succeeded",
            "failure": self.failure,
            "report": self.report,
            "wall_seconds": round(time.monotonic() - self._started, 3),
            "device": self.device,
            "memory": self.memory,
            "planned": beside(self.planned, self._taken()) if self.planned else {},
            "cost": self.cost(),
            "phases": [asdict(phase) for phase in self.phases],
            "data": self.data,
            "training": self.training,
            "evaluation": self.evaluation,
            "delivered": self.delivered,
            "effective": self.effective,
            "packages": package_versions(),
        }

    def cost(self) -> dict[str, float] | None:
        """Of the run so far, by the user's price; None where there is none."""
        if self.price_per_hour is None:
            return None
        hours = (time.monotonic() - self._started) / 3600
        return {
            "price_per_hour": self.price_per_hour,
            "hours": round(hours, 4),
            "cost": round(hours * self.price_per_hour, 4),
        }

    def _taken(self) -> dict[str, Any]:
        """What a `PlannedRun` may be held against. Stages that an earlier try has ended are not known."""
        return {
            "gpu_peak_bytes": self.memory.get("peak_gpu_reserved_bytes") if self.device.get("kind") == "cuda" else None,
            "host_peak_bytes": max((phase.peak_rss_bytes for phase in self.phases), default=None),
            "disk_peak_bytes": self._disk.peak_bytes if self._disk else None,
            "stage_seconds": {phase.name: phase.wall_seconds for phase in self.phases},
        }


def _cuda() -> Any:
    """`torch.cuda` if torch is loaded and has touched a GPU; measuring must neither import nor initialise it."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def describe_device(kind: str) -> dict[str, Any]:
    """Name, memory and compute capability of the device that trains ("cuda" or "cpu"), and this host's CPU and size."""
    import torch

    host = {
        "cpu_name": str(torch.cpu.get_capabilities().get("cpu_name", "")),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "host_memory_bytes": psutil.virtual_memory().total,
    }
    if kind == "cpu":
        return {"kind": kind, "name": "cpu", "total_memory_bytes": 0, "capability": None, **host}
    properties = torch.cuda.get_device_properties(0)
    capability = f"{properties.major}.{properties.minor}"
    return {
        "kind": kind,
        "name": properties.name,
        "total_memory_bytes": properties.total_memory,
        "capability": capability,
        **host,
    }


def arithmetic(device: Mapping[str, Any]) -> dict[str, str]:
    """What of a `describe_device` decides the order of sums, and so the last places of every figure."""
    names = ("name", "capability") if device["kind"] == "cuda" else ("cpu_name", "cpu_instructions", "cpu_threads")
    return {name: str(device[name]) for name in names}


def training_memory(start_reserved_bytes: int, peak_reserved_bytes: int, total_bytes: int) -> dict[str, float]:
    """The memory figures the tutorials print after training, in bytes and per cent of the card; 0 without a GPU."""
    for_training = peak_reserved_bytes - start_reserved_bytes
    share = (lambda part: round(100 * part / total_bytes, 3)) if total_bytes else (lambda part: 0.0)
    return {
        "start_gpu_reserved_bytes": start_reserved_bytes,
        "peak_gpu_reserved_bytes": peak_reserved_bytes,
        "peak_gpu_reserved_for_training_bytes": for_training,
        "peak_gpu_reserved_percent": share(peak_reserved_bytes),
        "peak_gpu_reserved_for_training_percent": share(for_training),
    }


def gpu_reserved_bytes() -> int:
    cuda = _cuda()
    return int(cuda.memory_reserved()) if cuda else 0


def gpu_peak_bytes() -> int:
    """That PyTorch has reserved at most since a stage began."""
    return gpu_peaks()[1]


def gpu_peaks() -> tuple[int, int]:
    """Bytes that PyTorch has allocated and reserved at most since `forget_gpu_peaks`."""
    cuda = _cuda()
    return (int(cuda.max_memory_allocated()), int(cuda.max_memory_reserved())) if cuda else (0, 0)


def forget_gpu_peaks() -> None:
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def package_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
