"""What a child took of memory is known when it has ended, and what it was killed with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from job.errors import CapacityError
from job.host.child import ENDED, run_child
from job.host.stats import Stats
from job.spec.strict import StrictValidator, load_schema

MIB = 1 << 20
MODULE = """
import mmap, os, signal, time
from job.host.child import serve

def handle(request):
    own = bytearray(b"x") * request["own_bytes"]
    with open(request["file"], "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    touched = sum(mapped[i] for i in range(0, len(mapped), 4096))
    time.sleep(0.3)
    if request["killed"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"touched": touched, "allocator": os.environ["MALLOC_MMAP_THRESHOLD_"]}

if __name__ == "__main__":
    serve(handle)
"""


@pytest.fixture
def request_of_100_and_60_mib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    (tmp_path / "given_hungry.py").write_text(MODULE)
    (tmp_path / "file").write_bytes(b"y" * 60 * MIB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return {"own_bytes": 100 * MIB, "file": str(tmp_path / "file"), "killed": False}


def test_a_stage_lists_its_children_with_what_was_planned_and_seen(
    request_of_100_and_60_mib: dict[str, object], tmp_path: Path
) -> None:
    stats = Stats("0" * 16, "x", tmp_path)
    with stats.phase("fetch"):
        pass
    with stats.phase("merge"):
        found = run_child("given_hungry", request_of_100_and_60_mib, tmp_path, "a part", planned_bytes=110 * MIB)
    assert found == {"touched": 60 * MIB // 4096 * ord("y"), "allocator": str(MIB)}
    fetch, merge = stats.phases
    assert fetch.children == []
    (child,) = merge.children
    assert (child.what, child.planned_bytes) == ("a part", 110 * MIB)
    assert 100 * MIB <= child.peak_anonymous_bytes <= 130 * MIB  # the mapped file is not in it
    assert child.peak_rss_bytes >= 160 * MIB
    StrictValidator(load_schema("stats")).validate(stats.document())


def test_what_was_killed_for_its_memory_says_how_much_it_had(
    request_of_100_and_60_mib: dict[str, object], tmp_path: Path
) -> None:
    before = len(ENDED)
    with pytest.raises(CapacityError) as caught:
        run_child(
            "given_hungry", request_of_100_and_60_mib | {"killed": True}, tmp_path, "a part", dict(os.environ), 50 * MIB
        )
    (fault,) = caught.value.faults
    taken = int(fault.found.removesuffix(" bytes taken"))
    assert taken >= 100 * MIB
    assert fault.expected == f"{50 * MIB} bytes"
    assert [child.peak_anonymous_bytes for child in ENDED[before:]] == [taken]


ANSWERING = """
import ctypes
from job.host.child import serve
from job.host.memory import blocks_used_again, held_by
import os

MIB = 1 << 20

def fetched(times):
    # pages that the kernel had to give while a block of 4 MiB was written and freed again and again
    import resource
    c = ctypes.CDLL(None)
    c.malloc.restype = ctypes.c_void_p
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        block = ctypes.c_void_p(c.malloc(ctypes.c_size_t(4 * MIB)))
        ctypes.memset(block, 1, 4 * MIB)
        c.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def handle(request):
    outside = fetched(10)
    with blocks_used_again():
        within = fetched(10)
    return {"outside": outside, "within": within, "after": fetched(10)}

if __name__ == "__main__":
    serve(handle)
"""


def test_blocks_are_given_back_but_where_they_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pages of 4 KiB, of which a block has 1,024."""
    (tmp_path / "given_answering.py").write_text(ANSWERING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = run_child("given_answering", {}, tmp_path, "a part")
    assert found["outside"] >= 10 * 1024
    assert found["within"] < 3 * 1024
    assert found["after"] >= 10 * 1024
