"""Artefacts on their way to the store: others are made meanwhile, and whatever happens each is whole or not noted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.errors import CapacityError, GateError, Interrupted, JobError
from job.export import storing as module
from job.export.storing import Storing
from job.host.log import Log
from job.ledger.manifest import File
from job.store import DirectoryStore
from job.store.base import sha256_of

SECONDS = 20.0  # on a busy machine


class SlowStore(DirectoryStore):
    """Uploads wait for `go`; a key in `full` finds no room."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go, self.begun, self.full = threading.Event(), list[str](), set[str]()

    def upload(self, path: Path, key: str) -> None:
        self.begun.append(key)
        assert self.go.wait(SECONDS)
        if key in self.full:
            raise CapacityError("the disk is full", where=key)
        super().upload(path, key)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SlowStore]:
    slow = SlowStore(tmp_path / "out")
    yield slow
    slow.go.set()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {f"merged/part-{i}": tmp_path / f"part-{i}" for i in range(3)}
    for key, path in found.items():
        path.write_bytes(key.encode() * 1000)
    return found


def test_work_goes_on_and_what_arrived_is_noted_with_its_digests(store: SlowStore, files: dict[str, Path]) -> None:
    storing, noted = Storing(store, Log()), list[list[File]]()
    storing.begin("merged", files, noted.append)
    storing.note()
    assert (storing.names, noted) == (["merged"], [])
    store.go.set()
    storing.note(every=True)
    assert (storing.names, len(noted)) == ([], 1)
    assert noted[0] == [File(key, path.stat().st_size, sha256_of(path)) for key, path in files.items()]
    assert [item.key for item in store.list()] == sorted(files)


def test_several_files_are_under_way_at_once_where_cores_allow(
    store: SlowStore, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 2 * module.CORES_PER_FILE)
    storing = Storing(store, Log())
    storing.begin("merged", files, lambda _: None)
    deadline = time.monotonic() + SECONDS
    while len(store.begun) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(store.begun) == list(files)[:2]


def test_what_could_not_be_stored_is_raised_once_nothing_of_it_is_at_work(
    store: SlowStore, files: dict[str, Path]
) -> None:
    storing, noted = Storing(store, Log()), list[list[File]]()
    store.full.add("merged/part-0")
    store.go.set()
    storing.begin("merged", files, noted.append)
    with pytest.raises(CapacityError, match="the disk is full"):
        storing.note(every=True)
    assert noted == []
    assert store.begun == list(files)
    assert [item.key for item in store.list()] == ["merged/part-1", "merged/part-2"]


def ended_by(
    cause: JobError | None, storing: Storing, store: SlowStore, given: dict[str, dict[str, Path]], noted: list[str]
) -> None:
    """Stores what is given until `cause` comes; the store takes it a little later."""
    with storing.to_the_end():
        for name, files in given.items():
            storing.begin(name, files, lambda _, name=name: noted.append(name))  # type: ignore[misc]
        while not store.begun:
            time.sleep(0.01)
        if cause:
            threading.Timer(0.2, store.go.set).start()
            raise cause


@pytest.mark.parametrize("cause", [GateError("another artefact is bad"), Interrupted("stopped by SIGTERM")])
def test_where_other_work_ends_what_is_being_uploaded_arrives_and_nothing_else_begins(
    store: SlowStore, files: dict[str, Path], cause: JobError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing is written once the lease is given back, and a rerun begins after what was being stored."""
    monkeypatch.setattr(module, "usable_cores", lambda: 1)
    storing, noted = Storing(store, Log()), list[str]()
    (first, path), others = files.popitem(), files
    with pytest.raises(type(cause)):
        ended_by(cause, storing, store, {"first": {first: path}, "second": others}, noted)
    assert noted == ["first"]
    assert store.begun == [first]
    assert [item.key for item in store.list()] == [first]
    assert not any(thread.is_alive() for thread in storing._pool._threads)


def test_a_stop_while_waiting_for_the_last_uploads_does_not_leave_them_at_work(
    store: SlowStore, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        store.go.set()
        raise Interrupted("stopped by SIGTERM")

    monkeypatch.setattr(module, "wait", interrupted)
    storing, noted = Storing(store, Log()), list[str]()
    with pytest.raises(Interrupted):
        ended_by(None, storing, store, {"first": dict([files.popitem()])}, noted)
    assert noted == ["first"]


def test_an_upload_that_fails_beside_another_failure_is_told(
    store: SlowStore, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    storing, one = Storing(store, Log()), {"merged/part-0": files["merged/part-0"]}
    store.full.add("merged/part-0")
    with pytest.raises(GateError, match="another"):
        ended_by(GateError("another artefact is bad"), storing, store, {"merged": one}, [])
    said = json.loads(capsys.readouterr().out)
    assert (said["note"], said["reason"]) == ("merged is not stored", "merged/part-0: the disk is full")
