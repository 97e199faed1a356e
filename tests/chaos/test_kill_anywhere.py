"""SIGKILL before any operation on files or the store: no false success, nothing stored is lost, the next try succeeds.

`make test` runs a short slice, `make chaos` all of it: TUNEJOB_CHAOS_KILLS says before how many of a run's K
operations, evenly spread, it is killed; `all` means each. Of these, TUNEJOB_CHAOS_PART=2/8 takes every eighth from the
second on: all parts one day after the other are the whole.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from job.errors import JobError
from tests.chaos.scene import MANY_PARTS, SHORT_LEASE, Scene
from tests.servers import S3Server
from tests.tiny import narrow_dir

KILLS = os.environ.get("TUNEJOB_CHAOS_KILLS", "0")
PART, PARTS = map(int, os.environ.get("TUNEJOB_CHAOS_PART", "1/1").split("/"))
FEWEST_OPERATIONS = 100
RANDOM_KILLS = 100  # for each store
IN_A_DIRECTORY = [
    r"rename .*/spec\.json",
    r"open .*/step-00000002/",
    r"rename .*/step-00000004/checkpoint\.json",
    r"rename .*/done/trained\.json",
    r"remove .*/step-00000004/optimizer\.pt",  # trained, with a receipt; checkpoints are being removed
    r"rename .*/out/stats\.json",
    r"rename .*/manifest\.json",
    r"remove .*/done/trained\.json",  # published
]
IN_S3 = [
    r"PUT .*/spec\.json \(body\)",  # the claim
    r"PUT .*/weights\.safetensors\?.*partNumber=2.* \(body\)",
    r"POST .*/adapter_model\.safetensors\?uploadId",
    r"PUT .*/manifest\.json \(body\)",
]
OF_EXPORTS = {  # which are stored by threads, while others are made
    "directory": [r"open .*/out/merged/\.tunejob", r"rename .*/done/merged\.json", r"rename .*/out/gguf/"],
    "s3": [r"(PUT|POST) .*/merged/model", r"PUT .*/done/merged\.json \(body\)", r"PUT .*/gguf/"],
}


def test_in_a_directory(tmp_path: Path) -> None:
    """One killed try after the other on one output."""
    one_after_the_other(Scene(tmp_path, str(tmp_path / "out")), IN_A_DIRECTORY)


def test_in_s3(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """The same where objects are stored in parts."""
    one_after_the_other(Scene(tmp_path, f"s3://{bucket}/run", s3, MANY_PARTS), IN_S3)


def one_after_the_other(scene: Scene, points: list[str]) -> None:
    kept: dict[str, str] = {}
    for point in points:
        assert scene.killed(point, SHORT_LEASE), f"the run has no operation {point}"
        kept |= scene.keeps()
    assert "adapter/adapter_model.safetensors" in kept
    scene.ends_well(kept)


@pytest.mark.skipif(KILLS == "0", reason="make chaos runs it")
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_exports_on_their_way(kind: str, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    limits = [{"type": name, "kl": 100, "perplexity_rise": 1000} for name in ("q8_0", "q4_0")]
    export = {
        "merged": ["16bit"],
        "gguf": ["q8_0", "q4_0"],
        "limits": {"merged_logits": 1, "merged_kl": 1, "gguf": limits},
    }
    killed = scene(kind, tmp_path, s3, bucket)
    changes = {**killed.changes, "/model/source": str(narrow_dir()), "/export": export}
    one_after_the_other(replace(killed, changes=changes), OF_EXPORTS[kind])


def scene(kind: str, folder: Path, s3: S3Server, bucket: str) -> Scene:
    """An output of its own."""
    return (
        Scene(folder, f"s3://{bucket}/{folder.name}", s3, MANY_PARTS)
        if kind == "s3"
        else Scene(folder, str(folder / "out"))
    )


@pytest.mark.skipif(KILLS == "0", reason="make chaos runs it")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_every_operation(kind: str, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Each kill on an output of its own, and the next try there; prints K, and what each kill prevented."""
    operations = scene(kind, tmp_path / "whole", s3, bucket).operations()
    assert len(operations) >= FEWEST_OPERATIONS
    count = len(operations) if KILLS == "all" else min(int(KILLS), len(operations))
    numbers = [int((i + 0.5) * len(operations) / count) + 1 for i in range(count)][PART - 1 :: PARTS]
    print(f"\n{kind}: K = {len(operations)}, {len(numbers)} kills", flush=True)
    failures = []
    for number in numbers:
        killed = scene(kind, tmp_path / f"kill-{number}", s3, bucket)
        operation = killed.killed(number)
        failures += fails_after(killed, operation or f"{number}: it ended before")
    assert failures == [], "\n".join(failures)


@pytest.mark.skipif(KILLS == "0", reason="make chaos runs it")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_random_times(kind: str, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """The same, whatever happens at that moment, in native code and in child processes as well."""
    chance, failures = random.Random(KILLS), []
    start = time.monotonic()
    scene(kind, tmp_path / "whole", s3, bucket).operations()
    whole_seconds = time.monotonic() - start
    for number in range(RANDOM_KILLS if KILLS == "all" else min(int(KILLS), RANDOM_KILLS)):
        killed, seconds = scene(kind, tmp_path / f"kill-{number}", s3, bucket), chance.uniform(0, whole_seconds)
        killed.killed_after(seconds)
        failures += fails_after(killed, f"{seconds:.2f} s")
    assert failures == [], "\n".join(failures)


def fails_after(killed: Scene, when: str) -> list[str]:
    """Looks at what a kill has left, and lets the next try end; what did not hold, if anything."""
    print(when, flush=True)
    try:
        killed.ends_well(killed.keeps())
    except (AssertionError, JobError) as error:
        print(f"  {error}", flush=True)
        return [f"{when}: {error}"]
    finally:
        shutil.rmtree(killed.folder)
    return []
