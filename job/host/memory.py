"""Memory of processes, as the kernel counts it, sampled from outside: what was killed for its memory is known, too."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB, GIB = 1 << 20, 1 << 30
LINES = {"VmHWM", "VmRSS", "RssAnon", "RssShmem"}  # of /proc/PID/status, in kB
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
MOST_MAPPED, TRIM_BYTES = 65_536, 128 << 10  # what the C library begins with


@contextmanager
def blocks_used_again() -> Iterator[None]:
    """What is freed within is used again instead of given back to the system, until the end.

    A child gives back every large block (`job.host.child.ALLOCATOR`), so that its peak can be planned. Who answers a
    question on a CPU makes and frees the same tensors for each token, and fetching them anew took more than half of
    the time: 18.4 s instead of 8.2 s (SmolLM2 in 4 bits, 23 questions, one thread). C libraries other than glibc
    have no such setting.
    """
    c = ctypes.CDLL(None)
    if not hasattr(c, "mallopt"):
        yield
        return
    c.mallopt(M_MMAP_MAX, 0)
    c.mallopt(M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        c.mallopt(M_MMAP_MAX, MOST_MAPPED)
        c.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        c.malloc_trim(ctypes.c_size_t(0))


@dataclass(frozen=True)
class Held:
    """What one process holds now; `highest_rss_bytes` since it began. The anonymous part is what a control group
    cannot take back, the rest is mapped files, which can be dropped.
    """

    anonymous_bytes: int
    rss_bytes: int
    highest_rss_bytes: int


def held_by(pid: int) -> Held:
    """Nothing where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Held(0, 0, 0)
    held = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if name in LINES
    }
    rss = held.get("VmRSS", 0)
    # A kernel that does not separate the two (before 4.5) has all of it counted.
    return Held(held.get("RssAnon", rss) + held.get("RssShmem", 0), rss, held.get("VmHWM", rss))


class MemorySampler(threading.Thread):
    """Follows process `pid` until `finish`; with `children`, which costs a look at every process, those it started too.

    `beside` is called at each sample. `highest_rss_bytes` is the process's own since it began, whoever watched;
    everything else is what was seen, children included.
    """

    def __init__(
        self, pid: int, every_seconds: float, children: bool = False, beside: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(name=f"memory of {pid}", daemon=True)
        self._pid, self._every_seconds, self._children, self._beside = pid, every_seconds, children, beside
        self._finished = threading.Event()
        self.anonymous_bytes = self.peak_anonymous_bytes = self.peak_rss_bytes = self.highest_rss_bytes = 0

    def run(self) -> None:
        while not self._finished.wait(self._every_seconds):
            self._sample()

    def finish(self) -> None:
        """Ends after a last sample."""
        self._finished.set()
        self.join()
        self._sample()

    def _sample(self) -> None:
        own = held_by(self._pid)
        held = [own, *map(held_by, _descendants(self._pid) if self._children else ())]
        self.anonymous_bytes = sum(one.anonymous_bytes for one in held)
        self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, self.anonymous_bytes)
        self.peak_rss_bytes = max(self.peak_rss_bytes, sum(one.rss_bytes for one in held))
        self.highest_rss_bytes = max(self.highest_rss_bytes, own.highest_rss_bytes)
        self._beside()


def _descendants(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
