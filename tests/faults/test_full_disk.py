"""A full disk, of scratch or output, ends with exit 13 and what was needed and free; with room, the rerun succeeds.

With TUNEJOB_CHAOS=1: every size and every stage, a quarter of an hour on two cores.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy
import pytest

from job.errors import CapacityError, classify, disk_is_full
from job.gguf.convert import convert
from job.gguf.gpu_quantise import quantise_on_device
from job.gguf.quantise import quantise
from job.host.child import run_child
from job.host.log import Log
from job.ledger.receipts import Receipts
from job.store import DirectoryStore
from job.weights.layout import reserve
from tests.flow.running import DEMO, Result, Running, document, tiny, tunejob, write_spec
from tests.hub_server import Hub
from tests.servers import S3Server
from tests.tiny import narrow_dir

pytestmark = pytest.mark.slow
KIB, MIB = 1 << 10, 1 << 20
AMPLE = 400 * MIB
ALL = bool(os.environ.get("TUNEJOB_CHAOS"))
chaos = pytest.mark.skipif(not ALL, reason="minutes: set TUNEJOB_CHAOS=1")
QUANTS = ("bf16", "q8_0") if ALL else ("q8_0",)
EXPORT = {
    "merged": ["16bit"], "gguf": list(QUANTS), "check_tokens": 128,
    "limits": {"merged_logits": 1, "merged_kl": 1,
               "gguf": [{"type": name, "kl": 100, "perplexity_rise": 1000} for name in QUANTS]},
}  # fmt: skip


# ------------------------------------------------------------------------------------------ small disks


class Disk:
    """A file system in memory whose size can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def resize(self, size_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(self.folder)], check=True)

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    def fill(self, leaving_bytes: int = 0) -> None:
        """Takes what is free, and what becomes free meanwhile, but for `leaving_bytes`."""
        with self._filler.open("ab") as filler:
            while (more := (self.free_bytes - leaving_bytes) // 4096 * 4096) > 0:
                try:
                    os.posix_fallocate(filler.fileno(), filler.seek(0, os.SEEK_END), more)
                except OSError:  # somebody else took a part of it
                    continue

    def relieve(self) -> None:
        self._filler.unlink()


@contextmanager
def disk(folder: Path, size_bytes: int) -> Iterator[Disk]:
    folder.mkdir(parents=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# ------------------------------------------------------------------------------------------ what a run leaves


@dataclass(frozen=True)
class Job:
    """One spec, tried again and again: output in `folder/out`, scratch in `folder/work`."""

    folder: Path
    spec: str
    extra: Mapping[str, str]

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def begin(self) -> Running:
        return Running(("run", self.spec, "--workdir", str(self.folder / "work")), self.folder / "scratch", self.extra)

    def run(self) -> Result:
        return self.begin().finish()


def job(folder: Path, changes: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> Job:
    return Job(
        folder,
        write_spec(folder / "spec.json", tiny(folder / "out", {"/model/source": str(narrow_dir()), **changes})),
        extra or {},
    )


def require_refusal(result: Result, output: Path) -> dict[str, Any]:
    """The failure of a try that had no room: exit 13, how much is needed and free, nothing stored but whole files."""
    assert result.exit_code == 13, result.stdout[-2000:] + result.stderr[-2000:]
    failure = result.failure
    assert failure["class"] == "CapacityError"
    assert re.fullmatch(r"\d+ bytes free", failure["found"]), failure
    assert re.match(r"(more than )?\d+ bytes", failure["expected"]), failure
    assert json.loads(result.last_words)["exit_code"] == 13
    assert not (output / "manifest.json").exists()
    assert not list(output.rglob(".tunejob-*")), "unfinished writes are removed"
    require_whole(output)
    return failure


def require_whole(output: Path) -> list[str]:
    """Names of the receipts, each of which holds: its files have the size and digest that were written down."""
    notes = StringIO()
    receipts = [path.parent.parent.name for path in output.glob("checkpoints/*/done/*.json")]
    names = Receipts(DirectoryStore(output), receipts[0], Log(notes)).names() if receipts else []
    assert len(names) == len(receipts), notes.getvalue()
    return names


def require_success(result: Result, tried: Job) -> None:
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert tunejob("verify", str(tried.output), scratch=tried.folder / "verify").exit_code == 0


# ------------------------------------------------------------------------------------------ scratch


# Scratch of a model and rows that come from S3, and the stage that ends a run there.
SCRATCH = {
    16 * KIB: "fetch",  # 97 kB of rows
    512 * KIB: "data",  # 3.5 MB of tokenizer
    2 * MIB: "data",
    4 * MIB: "data",
    14 * MIB: "weights",  # 13 MB, refused before a byte has come
    18 * MIB: "weights",  # room for them, not for the plan of the GGUFs
    30 * MIB: "weights",  # merge
    60 * MIB: "weights",  # comparison of the merged weights
    90 * MIB: "weights",
}
QUICK_SCRATCH = [2 * MIB, 60 * MIB]  # the smallest is below, for what the Hub sends


@pytest.fixture
def remote(s3: S3Server, tmp_path: Path) -> Job:
    """A job that has to copy everything."""
    bucket, client = s3.new_bucket(), s3.client()
    for path in (*narrow_dir().iterdir(), DEMO / "train.jsonl"):
        client.upload_file(str(path), bucket, f"model/{path.name}" if path.parent == narrow_dir() else path.name)
    rows = {"source": f"s3://{bucket}/train.jsonl", "format": "messages", "limit": 32}
    changes = {"/model/source": f"s3://{bucket}/model", "/data/train/0": rows, "/export": EXPORT}
    return job(tmp_path, changes, s3.environment())


def test_scratch_too_small(remote: Job) -> None:
    """Each size is a try of the same run; the last has room."""
    with disk(remote.folder / "work", AMPLE) as scratch:
        for size_bytes in SCRATCH if ALL else QUICK_SCRATCH:
            shutil.rmtree(next(scratch.folder.iterdir(), scratch.folder / "none"), ignore_errors=True)
            scratch.resize(size_bytes)
            failure = require_refusal(remote.run(), remote.output)
            assert failure["stage"] == SCRATCH[size_bytes], failure
            assert document(remote.output / "stats.json")["failure"]["message"] == failure["message"], (
                "evidence needs no scratch"
            )
        scratch.resize(AMPLE)
        require_success(remote.run(), remote)


HUB_SCRATCH = {16 * KIB: "fetch", 2 * MIB: "data", 12 * MIB: "weights"}


def test_scratch_too_small_for_what_the_hub_sends(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/tiny-llama").commit({path.name: path.read_bytes() for path in narrow_dir().iterdir()})
    hub.repo("datasets/org/rooms").commit({"data/train.jsonl": (DEMO / "train.jsonl").read_bytes()})
    rows = {"source": "hf://datasets/org/rooms", "format": "messages", "split": "train[:32]"}
    tried = job(
        tmp_path, {"/model/source": "hf://org/tiny-llama", "/data/train/0": rows}, {"HF_ENDPOINT": hub.endpoint}
    )
    with disk(tmp_path / "work", AMPLE) as scratch:
        for size_bytes, stage in HUB_SCRATCH.items():
            shutil.rmtree(next(scratch.folder.iterdir(), scratch.folder / "none"), ignore_errors=True)
            scratch.resize(size_bytes)
            assert require_refusal(tried.run(), tried.output)["stage"] == stage
        scratch.resize(AMPLE)
        require_success(tried.run(), tried)


# What fills the disk after an event of the log, when everything planned has been let in: the stage that then fails.
FILLED_AFTER = {"train": "train", "evaluate": "evaluate", "reload": "merge", "merge": "compare", "compare": "gguf"}


@chaos
def test_scratch_that_others_fill(tmp_path: Path) -> None:
    tried = job(tmp_path, {"/export": EXPORT, "/output/checkpoints": {"every_steps": 1, "max_failures": 1}})
    stages = []
    with disk(tmp_path / "work", AMPLE) as scratch:
        for event in FILLED_AFTER:
            running = tried.begin()
            running.wait_until(lambda r, event=event: r.says(f'"event": "{event}"'))
            scratch.fill()
            stages.append(require_refusal(running.finish(), tried.output)["stage"])
            scratch.relieve()
        require_success(tried.run(), tried)
    assert stages[:2] == ["train", "evaluate"]
    assert set(stages[2:]) <= {"merge", "compare", "gguf"}


# ------------------------------------------------------------------------------------------ checkpoints


STEPS = 24
CHECKPOINTS = {"/training/max_steps": STEPS, "/training/optimizer": "adamw_torch", "/evaluation/prompts": []}
BELOW_WEIGHTS, BELOW_OPTIMISER = 0, 400 * KIB  # the adapter has 271 kB, its moments twice that


def begin_without_room(tried: Job, scratch: Disk, leaving_bytes: int) -> Running:
    """A run that finds its scratch filled when its training begins."""
    running = tried.begin()
    running.wait_until(lambda r: r.says('"event": "baseline"'))
    scratch.fill(leaving_bytes)
    return running


@pytest.mark.parametrize("leaving_bytes", [BELOW_WEIGHTS, pytest.param(BELOW_OPTIMISER, marks=chaos)])
def test_checkpoints_without_room_do_not_end_the_training(leaving_bytes: int, tmp_path: Path) -> None:
    tried = job(tmp_path, {**CHECKPOINTS, "/output/checkpoints": {"every_steps": 2, "max_failures": STEPS}})
    with disk(tmp_path / "work", AMPLE) as scratch:
        running = begin_without_room(tried, scratch, leaving_bytes)
        running.wait_until(lambda r: r.says('"could not be made"'))
        scratch.relieve()
        result = running.finish()
    require_success(result, tried)
    notes = [event["note"] for event in result.named("checkpoint")]
    assert notes[0] == "could not be made"
    assert notes[-1] == "stored", "one that fails does not stop those after it"
    assert len(notes) == STEPS // 2 - 1


@chaos
def test_checkpoints_without_room_end_it_at_the_limit(tmp_path: Path) -> None:
    tried = job(tmp_path, {**CHECKPOINTS, "/output/checkpoints": {"every_steps": 2, "max_failures": 3}})
    with disk(tmp_path / "work", AMPLE) as scratch:
        result = begin_without_room(tried, scratch, 0).finish()
        failure = require_refusal(result, tried.output)
        scratch.relieve()
        require_success(tried.run(), tried)
    assert (failure["stage"], failure["pointer"]) == ("train", "/output/checkpoints/max_failures")
    assert len(result.named("checkpoint")) == 3


# ------------------------------------------------------------------------------------------ output


# Sizes of the output's disk: each is a try of the same run, which goes on with what the one before has stored.
OUTPUT = {
    4 * KIB: "run",  # the spec alone
    64 * KIB: "train",  # no checkpoint
    512 * KIB: "train",  # its weights, not its moments
    3 * MIB: "adapter",  # 3.5 MB of tokenizer
    12 * MIB: "evaluate",  # the report, whose probe is a row of logits
    26 * MIB: "compare",  # 13 MB of merged weights
    44 * MIB: "gguf",  # 17 MB of bf16
    AMPLE: "",
}


@chaos
def test_output_too_small(tmp_path: Path) -> None:
    tried = job(tmp_path, {"/export": EXPORT, "/output/checkpoints": {"every_steps": 1, "max_failures": 2}})
    with disk(tried.output, AMPLE) as output:
        for size_bytes, stage in OUTPUT.items():
            output.resize(size_bytes)
            result = tried.run()
            if stage:
                assert require_refusal(result, tried.output)["stage"] == stage
        require_success(result, tried)


def test_an_output_for_half_of_it(tmp_path: Path) -> None:
    """The adapter finds no room; the rerun trains no further than the checkpoints were."""
    tried = job(tmp_path, {"/output/checkpoints": {"every_steps": 1, "max_failures": 1000, "keep": 1}})
    with disk(tried.output, 3 * MIB) as output:
        assert require_refusal(tried.run(), tried.output)["stage"] == "adapter"
        output.resize(AMPLE)
        result = tried.run()
        require_success(result, tried)
    assert result.named("resume")


# ------------------------------------------------------------------------------------------ child processes


FILLING_CHILD = """
import os, sys
from job.host.child import serve
from job.errors import Fault, GateError

def handle(request):
    with open("all", "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 512): pass
        except OSError:
            if request["then"] == "raise": raise
    if request["then"] == "refuse": raise GateError(Fault("not what was trained"))
    return {}

if __name__ == "__main__":
    serve(handle)
"""


@pytest.mark.parametrize("then", ["raise", "refuse", "answer"])
def test_a_child_that_cannot_write_its_answer(then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the disk's fault whatever the answer would have been: a rerun with room will show it."""
    (tmp_path / "filling_child.py").write_text(FILLING_CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with disk(tmp_path / "disk", 64 * KIB) as small, pytest.raises(CapacityError, match="a part") as caught:
        run_child("filling_child", {"then": then}, small.folder, "a part")
    assert disk_is_full(caught.value)


# ------------------------------------------------------------------------------------------ what the writers say


def torch_file(folder: Path) -> None:
    import torch

    torch.save({"a": torch.ones(1 << 20)}, folder / "a.pt")


def safetensors_file(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1 << 20)}, folder / "a.safetensors")


def arrow_stream(folder: Path) -> None:
    import pyarrow as pa

    table = pa.table({"a": numpy.arange(1 << 20)})
    with pa.ipc.new_stream(folder / "a.arrow", table.schema) as stream:
        stream.write_table(table)


def numpy_array(folder: Path) -> None:
    numpy.ones(1 << 20).tofile(folder / "a")


def mapped_file(folder: Path) -> None:
    reserve(folder / "a", 2 * MIB)
    numpy.memmap(folder / "a", numpy.uint8, "r+")[:] = 1


def text_file(folder: Path) -> None:
    (folder / "a.json").write_text("x" * 2 * MIB)


def converted_gguf(folder: Path) -> None:
    convert(narrow_dir(), folder / "a.gguf", "bf16", "a", 2)


def tokenizer_file(folder: Path) -> None:
    from tokenizers import Tokenizer

    Tokenizer.from_file(str(narrow_dir() / "tokenizer.json")).save(str(folder / "tokenizer.json"))


WRITERS = [
    torch_file,
    safetensors_file,
    tokenizer_file,
    arrow_stream,
    numpy_array,
    mapped_file,
    text_file,
    converted_gguf,
]


@pytest.mark.parametrize("write", WRITERS, ids=[writer.__name__ for writer in WRITERS])
def test_every_writer_is_understood(write: Callable[[Path], None], tmp_path: Path) -> None:
    with disk(tmp_path / "disk", MIB) as small:
        with pytest.raises(Exception) as caught:
            write(small.folder)
        failure = classify(caught.value)
    assert type(failure) is CapacityError, repr(caught.value)
    assert disk_is_full(failure)


ENDS_IN = {"header": 16 * KIB, "vocabulary": MIB, "weights": 6 * MIB}  # of the file where the disk ends


@pytest.mark.parametrize("on_device", [False, True], ids=["llama.cpp", "torch"])
def test_every_quantiser_is_understood(on_device: bool, tmp_path: Path) -> None:
    source = tmp_path / "bf16.gguf"
    convert(narrow_dir(), source, "bf16", "a", 2)
    for part, size_bytes in ENDS_IN.items():
        with disk(tmp_path / part, size_bytes) as small:
            target = small.folder / "q8_0.gguf"
            with pytest.raises((CapacityError, OSError)) as caught:
                quantise_on_device(source, target, "q8_0", "cpu") if on_device else quantise(
                    source, target, "q8_0", None, 2
                )
        assert disk_is_full(classify(caught.value)), part
