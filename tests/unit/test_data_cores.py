"""Worker counts from control group files, as a kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from job.host.cgroup import WORKER_BYTES, native_threads, worker_count

GIB = 1 << 30
HERE = len(os.sched_getaffinity(0))


def machine(folder: Path, groups: str, files: dict[str, str], available_bytes: int = 64 * GIB) -> int:
    proc, cgroup = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(groups)
    (proc / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available_bytes >> 10} kB\n")
    for name, text in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(text + "\n")
    return worker_count(cgroup, proc)


V1 = "4:memory:/pod\n3:cpu,cpuacct:/pod\n1:name=systemd:/pod\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, HERE),
        ("0::/pod/job\n", {"cpu.max": "max 100000"}, HERE),
        ("0::/pod/job\n", {"pod/cpu.max": "100000 100000", "cpu.max": "max 100000"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/pod\n", {"pod/memory.max": str(3 * WORKER_BYTES), "pod/memory.current": str(WORKER_BYTES)}, 1),
        ("0::/pod\n", {"pod/memory.max": "max", "pod/memory.current": "5"}, HERE),
        (
            "0::/pod\n",
            {
                "pod/memory.max": str(6 * WORKER_BYTES),
                "pod/memory.current": str(6 * WORKER_BYTES),
                "pod/memory.stat": f"anon 1\nfile {5 * WORKER_BYTES}\n"
                f"inactive_file {3 * WORKER_BYTES}\nactive_file {WORKER_BYTES}",
            },
            2,
        ),
        (
            V1,
            {
                "memory/pod/memory.limit_in_bytes": str(6 * WORKER_BYTES),
                "memory/pod/memory.usage_in_bytes": str(6 * WORKER_BYTES),
                "memory/pod/memory.stat": "inactive_file 0\nactive_file 0\n"
                f"total_inactive_file {4 * WORKER_BYTES}\ntotal_active_file 0",
            },
            2,
        ),
        (V1, {"cpu/pod/cpu.cfs_quota_us": "-1", "cpu/pod/cpu.cfs_period_us": "100000"}, HERE),
        (V1, {"cpu/pod/cpu.cfs_quota_us": "100000", "cpu/pod/cpu.cfs_period_us": "100000"}, 1),
        (V1, {"cpu/cpu.cfs_quota_us": "90000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        (V1, {"memory/pod/memory.limit_in_bytes": str(GIB), "memory/pod/memory.usage_in_bytes": str(GIB // 2)}, 1),
    ],
)
def test_quota_and_memory(groups: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert machine(tmp_path, groups, files) == expected


def test_a_small_machine_still_gets_one_worker(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/\n", {}, available_bytes=GIB // 4) == 1


def test_this_machine() -> None:
    assert 1 <= worker_count() <= HERE


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("", HERE), ("0", HERE), ("many", HERE), ("2,1", HERE)])
def test_native_code_has_the_threads_that_omp_num_threads_says(
    said: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert native_threads() == threads
