"""How many worker processes fit: the container's CPU quota and memory, not the machine's."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

WORKER_BYTES = 768 << 20  # a worker with the largest public tokenizer (262k entries) and a full batch
MAX_WORKERS = 32  # beyond this the parent cannot read rows fast enough


def worker_count(cgroup: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """At least 1: the least of CPUs, CPU quota and half the free memory (cgroup v1 or v2)."""
    cores = usable_cores(cgroup, proc)
    return max(1, min(cores, int(available_bytes(cgroup, proc) / 2 / WORKER_BYTES), MAX_WORKERS))


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """Cores this process may use: its affinity and the quotas of its control groups, rounded up."""
    return math.ceil(min([float(len(os.sched_getaffinity(0))), *_quotas(cgroup, proc)]))


def native_threads() -> int:
    """Threads for native code that computes: as many as the usable cores, unless OMP_NUM_THREADS says how many."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else usable_cores()


def available_bytes(cgroup: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """Memory this process may still take: the least of what the host and each of its control groups has free."""
    return min([_host_available_bytes(proc), *_free_bytes(cgroup, proc)])


def _folders(cgroup: Path, proc: Path, controller: str) -> Iterator[Path]:
    """This process's control group folders for a controller, innermost first; v2 has one tree for all."""
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = cgroup / controller if names else cgroup
        here = root / path.lstrip("/")
        yield here
        yield from (parent for parent in here.parents if parent.is_relative_to(root))


def _numbers(file: Path) -> list[int] | None:
    """The whitespace-separated numbers of a control file; None where there is no such limit."""
    if not file.is_file():
        return None
    words = file.read_text().split()
    return None if "max" in words or "-1" in words else [int(word) for word in words]


def _quotas(cgroup: Path, proc: Path) -> Iterator[float]:
    for folder in _folders(cgroup, proc, "cpu"):
        if limit := _numbers(folder / "cpu.max"):
            yield limit[0] / limit[1]
        quota, period = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
        if quota and period:
            yield quota[0] / period[0]


def _free_bytes(cgroup: Path, proc: Path) -> Iterator[int]:
    for folder in _folders(cgroup, proc, "memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _numbers(folder / limit), _numbers(folder / used)
            if most and now:
                yield most[0] - now[0] + _cached_bytes(folder)


def _cached_bytes(group: Path) -> int:
    """Pages of files that the group is charged with: a download leaves many, and they are dropped for what needs room.

    v1 sums a group with those below it under other names; its plain ones are the group's own.
    """
    if not (file := group / "memory.stat").is_file():
        return 0
    held = {name: int(count) for name, _, count in (line.partition(" ") for line in file.read_text().splitlines())}
    prefix = "total_" if "total_inactive_file" in held else ""
    return held.get(f"{prefix}inactive_file", 0) + held.get(f"{prefix}active_file", 0)


def _host_available_bytes(proc: Path) -> int:
    words = next(
        line for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemAvailable")
    ).split()
    return int(words[1]) << 10
