"""What the engines have compiled for a card, kept in a store for the next run on such a card.

    <address>/<what it was compiled for>/<SHA-256>.tar.gz    Triton's and Inductor's folders
    <address>/<what it was compiled for>/compiled.json       written last: for what, the archive's digest, signed

This is code that a run executes with all it has. So it is off unless the environment names a place and a key, and
nothing is opened before its signature by that key, its digest and what it was made for are found right: whoever may
write there without the key can make a run compile anew, and no more. Whoever has the key can have every run there
execute anything.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from job import __version__
from job.errors import InputError, TransientError
from job.host.known_secrets import learn, learned, secret_values
from job.host.log import Log, Secret
from job.host.stats import arithmetic, package_versions
from job.ledger.leftovers import optional
from job.ledger.manifest import store_file
from job.store import Store, open_store
from job.store.base import sha256_of, translating_errors

PLACE, KEY = "TUNEJOB_COMPILED", "TUNEJOB_COMPILED_KEY"
FOLDERS = {"triton": "TRITON_CACHE_DIR", "inductor": "TORCHINDUCTOR_CACHE_DIR"}
NAME = "compiled.json"
SHORTEST_KEY = 32  # characters: what is signed can be read, and a short key be guessed from it
MAX_NAME_BYTES = 64 << 10
MAX_BYTES = 2 << 30  # of the archive, and of what is in it
SHORTEST_SECRET = 8  # characters; a shorter one is in every program by chance


class Compiled:
    """The folders of one process's engines. Takes place and key out of the environment, so that no child has them.

    Raises `InputError` for one without the other, for a key that could be guessed, and for a place that is neither in
    S3 nor a full path.
    """

    def __init__(self) -> None:
        self._place, self._key = os.environ.pop(PLACE, ""), Secret(os.environ.pop(KEY, ""))
        learn(self._key.reveal())
        if self._place and len(self._key.reveal()) < SHORTEST_KEY:
            hint = f"Who has this key can run code in every job: openssl rand -hex {SHORTEST_KEY}"
            found = f"{len(self._key.reveal())} characters"
            raise InputError(f"{KEY} is too short", found=found, expected=f"at least {SHORTEST_KEY}", hint=hint)
        if self._place and not self._place.startswith(("s3://", "/")):
            raise InputError("not a place to keep what was compiled", where=PLACE, found=ascii(self._place),
                             expected="s3://bucket/prefix, or a directory's full path")  # fmt: skip
        self._is_there = False

    def fetch(self, device: Mapping[str, Any], workdir: Path, log: Log) -> None:
        """Fills the engines' folders with what an earlier run has compiled on such a `describe_device`, if there is
        any. What is wrong with it is said, and the engines compile themselves. A run that does not train has no device.
        """
        if not self._place or not device:
            return
        made_for = _made_for(device)
        with optional(log, "what was compiled before could not be fetched"):
            reason = self._fetched(open_store(self._place), made_for, workdir)
            log("note", text=f"what was compiled in {_folder(made_for)}: {reason or 'fetched'}")

    def keep(self, device: Mapping[str, Any], workdir: Path, log: Log) -> None:
        """Stores the engines' folders, unless there was something whole already."""
        if not self._place or not device or self._is_there:
            return
        made_for, archive = _made_for(device), workdir / "compiled.tar.gz"
        with optional(log, "what was compiled could not be kept"), translating_errors(str(archive), OSError):
            try:
                left_out = _pack(archive)
                if left_out is None:
                    return
                self._store(open_store(self._place), made_for, archive)
                said = f"kept, {archive.stat().st_size} bytes; {left_out} files with a secret left out"
                log("note", text=f"what was compiled in {_folder(made_for)}: {said}")
            finally:
                archive.unlink(missing_ok=True)

    def _store(self, store: Store, made_for: dict[str, str], archive: Path) -> None:
        if archive.stat().st_size > MAX_BYTES:
            raise TransientError("it is too large to be kept", found=f"{archive.stat().st_size} bytes")
        stored = store_file(store, archive, f"{_folder(made_for)}/{sha256_of(archive)}.tar.gz")
        content = {"made_for": made_for, "bytes": stored.bytes, "sha256": stored.sha256}
        signed = content | {"hmac": self._signature(content)}
        store.write(f"{_folder(made_for)}/{NAME}", json.dumps(signed, indent=1).encode())

    def _fetched(self, store: Store, made_for: dict[str, str], workdir: Path) -> str:
        """Why nothing was fetched; empty where it was."""
        folder = _folder(made_for)
        sizes = {item.key: item.bytes for item in store.list(folder)}
        if f"{folder}/{NAME}" not in sizes:
            return "none for this card and these versions yet"
        if any(path.is_dir() and any(path.iterdir()) for path in _folders().values()):
            self._is_there = True
            return "not fetched: this machine has its own"
        content = self._proven(store.read(f"{folder}/{NAME}") if sizes[f"{folder}/{NAME}"] <= MAX_NAME_BYTES else b"")
        if content is None or content.get("made_for") != made_for:
            return f"not used: {NAME} is not signed by the holder of {KEY}"
        key, archive = f"{folder}/{content['sha256']}.tar.gz", workdir / "compiled.tar.gz"
        if sizes.get(key) != content["bytes"] or content["bytes"] > MAX_BYTES:
            return f"not used: {sizes.get(key, 'no')} bytes instead of {content['bytes']}"
        try:
            store.download(key, archive)
            if sha256_of(archive) != content["sha256"]:
                return "not used: its SHA-256 is not the one that was signed"
            _unpack(archive, workdir)
        finally:
            archive.unlink(missing_ok=True)
        self._is_there = True
        return ""

    def _proven(self, raw: bytes) -> dict[str, Any] | None:
        try:
            content = json.loads(raw)
            given = bytes.fromhex(content.pop("hmac"))
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            return None
        return content if hmac.compare_digest(given, bytes.fromhex(self._signature(content))) else None

    def _signature(self, content: Mapping[str, Any]) -> str:
        said = json.dumps(content, sort_keys=True).encode()
        return hmac.new(self._key.reveal().encode(), said, hashlib.sha256).hexdigest()


def _made_for(device: Mapping[str, Any]) -> dict[str, str]:
    """Everything that what is compiled depends on, by name."""
    here = {"tunejob": __version__, "python": platform.python_version(), "machine": platform.machine()}
    with suppress(importlib.metadata.PackageNotFoundError):
        here["triton"] = importlib.metadata.version("triton")
    return package_versions() | arithmetic(device) | here


def _folder(made_for: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()[:16]


def _folders() -> dict[str, Path]:
    return {name: Path(os.environ[variable]) for name, variable in FOLDERS.items() if os.environ.get(variable)}


def _pack(archive: Path) -> int | None:
    """How many files hold a secret and were left out; None where nothing was compiled."""
    values = {*secret_values(os.environ), *learned()}
    secrets = [value.encode() for value in values if len(value) >= SHORTEST_SECRET]
    packed = left_out = 0
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name, path in _files():
            data = path.read_bytes()
            if any(secret in data for secret in secrets):
                left_out += 1
                continue
            tar.add(path, name, recursive=False, filter=_plain)
            packed += 1
    return left_out if packed else None


def _files() -> Iterator[tuple[str, Path]]:
    """Whole files; not what marks a folder as being written."""
    for name, folder in _folders().items():
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if (
                path.is_file()
                and not path.is_symlink()
                and not any(p.startswith("tmp.") or p == "locks" for p in inside.parts)
            ):
                yield f"{name}/{inside.as_posix()}", path


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without who and when."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def _unpack(archive: Path, workdir: Path) -> None:
    """Into the engines' folders, by way of one that they do not know; nothing lands outside of it."""
    between = workdir / "compiled"
    try:
        with tarfile.open(archive, "r:gz") as tar:
            if sum(entry.size for entry in tar) > MAX_BYTES:
                raise TransientError("it unpacks to too much", expected=f"at most {MAX_BYTES} bytes")
            tar.extractall(between, filter="data")
        for name, folder in _folders().items():
            if (between / name).is_dir():
                shutil.copytree(between / name, folder, dirs_exist_ok=True)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise TransientError("it cannot be unpacked", found=str(error)) from error
    finally:
        shutil.rmtree(between, ignore_errors=True)
