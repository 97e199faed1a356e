"""Memory stays flat while large files move, up, hashed and down again, through a directory and through S3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# 8 GiB with `make memory-test`: what is more than may be grown by shows a growth with the size as well.
MOVED_BYTES = int(os.environ.get("TUNEJOB_TEST_MOVED_BYTES", 7 << 25))
GROWTH_BYTES = 192 << 20

MOVE = """
import resource, sys
from pathlib import Path
from job.store import open_store

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

store, folder, size = open_store(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
store.write("warm", b"x")
store.read("warm")
before = peak_bytes()
with (folder / "up").open("wb") as file:
    file.truncate(size)
    file.write(b"head")
store.upload(folder / "up", "file")
digest = store.sha256("file")
(folder / "up").unlink()
store.download("file", folder / "down")
assert (folder / "down").stat().st_size == size
with (folder / "down").open("rb") as file:
    assert file.read(5) == b"head\\0"
store.delete("file")
print(peak_bytes() - before, digest)
"""


@pytest.mark.parametrize("place", ["directory", "http", "https"])
def test_memory_stays_flat_while_large_files_move(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    address = str(tmp_path / "store")
    if place != "directory":
        address = f"s3://{request.getfixturevalue('bucket')}/prefix"
    if place == "https":
        request.getfixturevalue("clean_environment").setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3").https)
    moved = subprocess.run(
        [sys.executable, "-c", MOVE, address, str(tmp_path), str(MOVED_BYTES)], capture_output=True, text=True
    )
    assert moved.returncode == 0, moved.stderr
    growth_bytes = int(moved.stdout.split()[0])
    print(f"{place}: {MOVED_BYTES >> 20} MiB moved, peak memory grew by {growth_bytes >> 20} MiB")
    assert growth_bytes <= GROWTH_BYTES
