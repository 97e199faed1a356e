"""What engines have compiled, kept for the next run: only by the key, only for the same card, nothing touched."""

from __future__ import annotations

import io
import json
import os
import tarfile
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from job.errors import InputError
from job.host.log import Log
from job.ledger import compiled
from job.ledger.compiled import KEY, PLACE, Compiled
from job.store import DirectoryStore
from tests.servers import S3Server

SECRET = "k" * 40
CARD: dict[str, Any] = {"kind": "cuda", "name": "NVIDIA H200", "capability": "9.0"}
FILES = {
    "triton": {"ABC/kernel.cubin": b"\0\1" * 5000, "ABC/kernel.json": b"{}"},
    "inductor": {"fx/graph": b"graph", "x/c.py": b"pass"},
}


class Machine:
    """The folders of one run on a machine of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, key: str = SECRET) -> None:
        self.folder, self.said = folder, StringIO()
        folder.mkdir()
        for name, variable in compiled.FOLDERS.items():
            monkeypatch.setenv(variable, str(folder / name))
        monkeypatch.setenv(PLACE, place)
        monkeypatch.setenv(KEY, key)
        self._compiled = Compiled()

    def fetch(self, device: dict[str, Any] = CARD) -> str:
        return self._told(lambda log: self._compiled.fetch(device, self.folder, log))

    def keep(self, device: dict[str, Any] = CARD) -> str:
        return self._told(lambda log: self._compiled.keep(device, self.folder, log))

    def _told(self, do: Any) -> str:
        said = StringIO()
        do(Log(said))
        return said.getvalue()

    def compile(self, files: dict[str, dict[str, bytes]] = FILES) -> None:
        for name, content in files.items():
            for path, data in content.items():
                (self.folder / name / path).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name / path).write_bytes(data)

    def files(self) -> dict[str, dict[str, bytes]]:
        found: dict[str, dict[str, bytes]] = {}
        for name in compiled.FOLDERS:
            for path in (self.folder / name).rglob("*"):
                if path.is_file():
                    found.setdefault(name, {})[path.relative_to(self.folder / name).as_posix()] = path.read_bytes()
        return found


def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A place with what one run has kept: it, its description and its archive."""
    first = Machine(tmp_path / "first", monkeypatch, str(tmp_path / "place"))
    first.fetch()
    first.compile()
    assert "kept" in first.keep()
    (description,) = (tmp_path / "place").rglob(compiled.NAME)
    (archive,) = (tmp_path / "place").rglob("*.tar.gz")
    return tmp_path / "place", description, archive


@pytest.mark.parametrize("scheme", ["directory", "http", "https"])
def test_the_next_run_has_what_the_first_has_compiled(
    scheme: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "place")
    if scheme != "directory":
        s3: S3Server = request.getfixturevalue("s3")
        place = f"s3://{s3.new_bucket()}/compiled"
        for name, value in s3.environment(secure=scheme == "https").items():
            monkeypatch.setenv(name, value)
    first = Machine(tmp_path / "first", monkeypatch, place)
    assert "none for this card" in first.fetch()
    first.compile()
    assert "kept" in first.keep()
    second = Machine(tmp_path / "second", monkeypatch, place)
    assert "fetched" in second.fetch()
    assert second.files() == FILES
    assert second.keep() == "", "it is written once"
    assert sorted(path.name for path in second.folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("other", [{"name": "NVIDIA H100"}, {"capability": "8.9"}])
def test_another_card_compiles_itself(other: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, *_ = kept(tmp_path, monkeypatch)
    second = Machine(tmp_path / "second", monkeypatch, str(place))
    assert "none for this card" in second.fetch(CARD | other)
    assert not second.files()
    monkeypatch.setattr(compiled, "package_versions", lambda: {"torch": "9.9"})
    assert "none for this card and these versions" in second.fetch()


def flipped(path: Path, description: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def forged(path: Path, description: Path) -> None:
    """Somebody who may write, without the key: an archive of their own with its right digest."""
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("triton/evil.py")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"evil"))
    store = DirectoryStore(str(path.parent))
    content = json.loads(description.read_text()) | {"sha256": store.sha256(path.name), "bytes": path.stat().st_size}
    path.rename(path.with_name(f"{content['sha256']}.tar.gz"))
    description.write_text(json.dumps(content))


def moved(path: Path, description: Path) -> None:
    """What was signed for another card, put in the place of this one's."""
    content = json.loads(description.read_text())
    content["made_for"]["name"] = "NVIDIA H100"
    description.write_text(json.dumps(content))


TOUCHED = {
    "a bit of the archive": flipped,
    "a bit of the description": lambda path, description: flipped(description, description),
    "an archive of their own": forged,
    "what it was made for": moved,
    "cut short": lambda path, description: path.write_bytes(path.read_bytes()[:-1]),
    "no archive": lambda path, description: path.unlink(),
    "not JSON": lambda path, description: description.write_bytes(b"\xff["),
    "a list": lambda path, description: description.write_text("[]"),
    "odd signatures": lambda path, description: description.write_text('{"hmac": "\\ud800"}'),
    "too long a description": lambda path, description: description.write_bytes(b" " * (compiled.MAX_NAME_BYTES + 1)),
}


@pytest.mark.parametrize("what", TOUCHED)
def test_nothing_of_what_was_touched_is_opened(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, description, archive = kept(tmp_path, monkeypatch)
    TOUCHED[what](archive, description)
    monkeypatch.setattr(compiled, "_unpack", lambda *_: pytest.fail("it was opened"))
    second = Machine(tmp_path / "second", monkeypatch, str(place))
    assert "not used" in second.fetch()
    assert not second.files()
    monkeypatch.undo()
    third = Machine(tmp_path / "third", monkeypatch, str(place))  # which compiles itself, and mends it
    third.fetch()
    third.compile()
    assert "kept" in third.keep()
    assert "fetched" in Machine(tmp_path / "fourth", monkeypatch, str(place)).fetch()


def test_another_key_is_another_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, *_ = kept(tmp_path, monkeypatch)
    second = Machine(tmp_path / "second", monkeypatch, str(place), key="o" * 40)
    assert "not signed by the holder" in second.fetch()
    assert not second.files()


def test_even_a_signed_archive_stays_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _, _ = kept(tmp_path, monkeypatch)
    archive = tmp_path / "climbing.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("../../outside")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"evil"))
    signer = Machine(tmp_path / "signer", monkeypatch, str(place))
    signer._compiled._store(DirectoryStore(str(place)), compiled._made_for(CARD), archive)
    second = Machine(tmp_path / "second", monkeypatch, str(place))
    assert "cannot be unpacked" in second.fetch()
    assert not second.files()
    assert not list(tmp_path.rglob("outside"))


def test_secrets_and_locks_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    first = Machine(tmp_path / "first", monkeypatch, str(tmp_path / "place"))
    first.compile()
    first.compile(
        {"inductor": {"env.py": b"x = 'hf_abcdefghijklmnopqrstuvwxyz'", "key.py": SECRET.encode(), "locks/a.lock": b""}}
    )
    assert "2 files with a secret left out" in first.keep()
    second = Machine(tmp_path / "second", monkeypatch, str(tmp_path / "place"))
    second.fetch()
    assert second.files() == FILES


def test_nobody_else_has_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path / "first", monkeypatch, str(tmp_path / "place"))
    assert PLACE not in os.environ
    assert KEY not in os.environ
    assert SECRET not in Log(StringIO()).redact(f"said {SECRET}")
    assert machine.keep() == "", "nothing was compiled"
    assert machine.fetch({}) == "", "nothing is trained"
    with pytest.raises(InputError, match="TUNEJOB_COMPILED_KEY is too short"):
        Machine(tmp_path / "second", monkeypatch, "/place", key="short")


@pytest.mark.parametrize("place", ["relative/path", "hf://owner/name", "S3://bucket/prefix", "file:///place"])
def test_what_is_no_place_is_refused_and_makes_no_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="TUNEJOB_COMPILED: not a place") as refused:
        Machine(tmp_path / "first", monkeypatch, place)
    assert refused.value.exit_code == 11


def test_a_signed_description_of_another_form_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a later version might write it."""
    place, description, _ = kept(tmp_path, monkeypatch)
    second = Machine(tmp_path / "second", monkeypatch, str(place))
    content = {"version": 2}
    description.write_text(json.dumps(content | {"hmac": second._compiled._signature(content)}))
    assert "not used" in second.fetch()


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    machine = Machine(tmp_path / "first", monkeypatch, str(tmp_path / "file" / "below"))
    machine.fetch()
    machine.compile()
    assert "could not be kept" in machine.keep()
