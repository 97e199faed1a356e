"""Checkpoints in a store: only whole ones are used, only one's own, and nothing of a damaged one is opened."""

from __future__ import annotations

import hashlib
import json
from io import StringIO
from pathlib import Path

import pytest

from job.errors import CapacityError, Fault, InputError, TransientError
from job.host.log import Log
from job.ledger.checkpoints import Checkpoint, Checkpoints, TrainingOrigin
from job.spec import CheckpointsSpec
from job.store import DirectoryStore, open_store

ORIGIN = TrainingOrigin("0123456789abcdef", "hf://org/base@main", "d" * 64)
MACHINE = {"cpu_name": "one", "cpu_threads": "2"}
FILES = ("optimizer.pt", "progress.json", "weights.safetensors")
FOLDER = "checkpoints/0123456789abcdef"
EVERY = ("checkpoint.json", *FILES)


def settings(keep: int = 2, max_failures: int = 3) -> CheckpointsSpec:
    return CheckpointsSpec(uri=None, every_minutes=10, every_steps=None, keep=keep, max_failures=max_failures)


def checkpoints(store: Path, origin: TrainingOrigin = ORIGIN, keep: int = 2, max_failures: int = 3) -> Checkpoints:
    return Checkpoints(
        open_store(str(store)), origin, settings(keep, max_failures), Log(StringIO()), MACHINE, claim=lambda: None
    )


def made(folder: Path, step: int) -> Path:
    """A checkpoint's files, as the training leaves them."""
    folder = folder / f"made-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(f"{name} of step {step}".encode() * 100)
    return folder


def stored(tmp_path: Path, *steps: int, keep: int = 2) -> Path:
    """A store with these checkpoints."""
    store = tmp_path / "store"
    mine = checkpoints(store, keep=keep)
    for step in steps:
        mine.send(step, made(tmp_path, step))
    mine.wait()
    assert mine.stored == len(steps)
    return store


def newest(store: Path, tmp_path: Path, origin: TrainingOrigin = ORIGIN) -> Checkpoint | None:
    return checkpoints(store, origin).newest(tmp_path / "found")


def test_the_newest_comes_back_whole(tmp_path: Path) -> None:
    found = newest(stored(tmp_path, 5, 10, 15), tmp_path)
    assert found is not None
    assert found.step == 15
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == {
        name: f"{name} of step 15".encode() * 100 for name in FILES
    }
    assert not (tmp_path / "made-15").exists(), "local copies are removed"


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = stored(tmp_path, 5, 10, 15, 20, keep=2)
    assert {path.parent.name for path in (store / FOLDER).rglob("*.*")} == {"step-00000015", "step-00000020"}


def test_parts_that_a_kill_left_are_removed(tmp_path: Path) -> None:
    store = stored(tmp_path, 5)
    part = store / FOLDER / "step-00000007" / "weights.safetensors"
    part.parent.mkdir()
    part.write_bytes(b"half")
    mine = checkpoints(store)
    mine.send(10, made(tmp_path, 10))
    mine.wait()
    assert not part.exists()
    assert (store / FOLDER / "step-00000005" / "checkpoint.json").exists()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "one bit", "longer"])
def test_a_damaged_one_is_passed_over(name: str, damage: str, tmp_path: Path) -> None:
    store = stored(tmp_path, 5, 10)
    path = store / FOLDER / "step-00000010" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(
            {"truncated": content[:-1], "empty": b"", "one bit": flipped, "longer": content + b" "}[damage]
        )
    found = newest(store, tmp_path)
    assert found is not None
    if name == "checkpoint.json" and damage == "longer":
        assert found.step == 10, "white space after the document changes nothing in it"
        return
    assert found.step == 5
    assert not (tmp_path / "found" / "step-00000010").exists()


def test_none_is_whole(tmp_path: Path) -> None:
    store = stored(tmp_path, 5, 10)
    for path in store.rglob("weights.safetensors"):
        path.write_bytes(b"")
    assert newest(store, tmp_path) is None


def test_there_are_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nothing", tmp_path) is None


@pytest.mark.parametrize(
    ("key", "pointer"), [("run_id", "/output/checkpoints"), ("base", "/model/source"), ("data", "/data/train")]
)
def test_those_of_others_are_refused(key: str, pointer: str, tmp_path: Path) -> None:
    """Whole, but of another run, base or data: somebody has put it there, or changed what it continues."""
    store = stored(tmp_path, 5)
    other = TrainingOrigin(**{**vars(ORIGIN), key: "e" * 16})
    if key == "run_id":
        (store / FOLDER).rename(store / "checkpoints" / other.run_id)
        for manifest in store.rglob("checkpoint.json"):
            assert json.loads(manifest.read_text())["origin"]["run_id"] == ORIGIN.run_id
    with pytest.raises(InputError) as caught:
        newest(store, tmp_path, other)
    assert [fault.where for fault in caught.value.faults] == [pointer]
    assert not (tmp_path / "found").exists(), "nothing was fetched"


def test_a_store_that_fails_ends_the_training_at_the_limit(tmp_path: Path) -> None:
    blocked = tmp_path / "store"
    blocked.write_text("a file where the folder would be")
    mine = checkpoints(blocked, max_failures=2)
    mine.send(5, made(tmp_path, 5))
    mine.send(10, made(tmp_path, 10))  # the first failure is reported, and the training goes on
    with pytest.raises(TransientError) as caught:
        mine.wait()
    assert caught.value.faults[0].where == "/output/checkpoints/max_failures"
    assert not list(tmp_path.glob("made-*")), "what could not be stored does not fill the disk"


def test_those_that_no_disk_had_room_for_count_too(tmp_path: Path) -> None:
    full = CapacityError(Fault("the disk is full", where="", found="5 bytes free", expected="more than 6 bytes in all"))
    mine = checkpoints(tmp_path / "store", max_failures=2)
    mine.miss(5, full)
    mine.send(10, made(tmp_path, 10))
    mine.miss(15, full)  # the one that was on its way arrived
    with pytest.raises(CapacityError) as caught:
        mine.miss(20, full)
    (fault,) = caught.value.faults
    assert (fault.where, fault.found, fault.expected) == (
        "/output/checkpoints/max_failures",
        "5 bytes free",
        "more than 6 bytes in all",
    )
    assert mine.stored == 1


def test_one_failure_between_successes_is_forgiven(tmp_path: Path) -> None:
    store = tmp_path / "store"
    mine = checkpoints(store, max_failures=2)
    for step in (5, 10, 15, 20):
        blocked = store / FOLDER / f"step-{step:08d}"
        mine.wait()
        if step in (5, 15):
            blocked.parent.mkdir(parents=True, exist_ok=True)
            blocked.write_text("in the way")
        mine.send(step, made(tmp_path, step))
    mine.wait()
    assert mine.stored == 2


def test_removal_takes_all_and_nothing_else(tmp_path: Path) -> None:
    store = stored(tmp_path, 5, 10)
    DirectoryStore(str(store)).write(f"{FOLDER}/done/trained.json", b"{}")
    checkpoints(store).remove()
    assert [path.name for path in store.rglob("*") if path.is_file()] == ["trained.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": None},
        {"origin": {}},
        {"files": None},
        {"files": []},
        {"files": [{}]},
        {"files": [{"key": [], "bytes": 0, "sha256": ""}]},
    ],
)
def test_a_signed_manifest_of_another_shape_is_passed_over(changes: dict[str, object], tmp_path: Path) -> None:
    """Whoever can write the prefix can sign anything; what is not a checkpoint does not stop the run."""
    store = stored(tmp_path, 5, 10)
    path = store / FOLDER / "step-00000010" / "checkpoint.json"
    content = {**json.loads(path.read_text()), **changes}
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": digest}))
    found = newest(store, tmp_path)
    assert found is not None
    assert found.step == 5


def test_what_says_nothing_of_its_origin_is_anothers() -> None:
    with pytest.raises(InputError) as refused:
        ORIGIN.require({}, "what is stored was trained on", "")
    assert [fault.where for fault in refused.value.faults] == ["/output/checkpoints", "/model/source", "/data/train"]


def test_the_end_of_a_training_is_sent_only_where_its_weights_were_not_stored(tmp_path: Path) -> None:
    for held in (True, False):
        mine = checkpoints(tmp_path / f"store-{held}")
        with mine.until_stored():
            if held:
                mine.hold(20, made(tmp_path / "good", 20))
        assert newest(tmp_path / f"store-{held}", tmp_path) is None
        assert not (tmp_path / "good" / "made-20").exists()
    mine = checkpoints(tmp_path / "store")
    for error in (ValueError("a library's"), KeyboardInterrupt()):
        mine.hold(20, made(tmp_path / "bad", 20))
        with pytest.raises(type(error)), mine.until_stored():
            raise error
    found = newest(tmp_path / "store", tmp_path)
    assert found is not None
    assert found.step == 20
