"""A store in a local directory."""

from __future__ import annotations

import builtins
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from job.errors import DISK_FULL, CapacityError, InputError, PolicyError
from job.store.base import TEMPORARY, Stored, local_path, safe_key, sha256_of, translating_errors, within

# Readable for whoever serves the result, whatever mode the writing library chose; the umask still applies.
FILE_MODE, FOLDER_MODE = 0o644, 0o755
DISK_HINT = "Make room there, then run the same spec again"


class DirectoryStore:
    """Objects as files below `uri`, a resolved absolute path that is made on the first write."""

    def __init__(self, uri: str | Path) -> None:
        self._root = local_path(uri).resolve()
        self.uri = str(self._root)

    def list(self, prefix: str = "") -> builtins.list[Stored]:
        with translating_errors(self.uri, OSError):
            files = [path for folder, *names in os.walk(self._root) for path in _listed(Path(folder), *names)]
            keys = {
                path.relative_to(self._root).as_posix(): path for path in files if not path.name.startswith(TEMPORARY)
            }
            return [Stored(safe_key(k), keys[k].lstat().st_size) for k in sorted(keys) if within(k, prefix)]

    def read(self, key: str) -> bytes:
        with translating_errors(f"{self.uri}/{key}", OSError):
            return self._existing(key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        with translating_errors(f"{self.uri}/{key}", OSError), self._replacing(key, len(data)) as out:
            out.write(data)

    def upload(self, path: Path, key: str) -> None:
        with (
            translating_errors(f"{self.uri}/{key}", OSError),
            self._replacing(key, path.stat().st_size) as out,
            path.open("rb") as source,
        ):
            shutil.copyfileobj(source, out, 1 << 20)

    def download(self, key: str, path: Path) -> None:
        with translating_errors(f"{self.uri}/{key}", OSError):
            source = self._existing(key)
            with _room(path, source.stat().st_size):
                path.parent.mkdir(parents=True, exist_ok=True)
                with _whole(path) as out, source.open("rb") as stored:
                    shutil.copyfileobj(stored, out, 1 << 20)

    def sha256(self, key: str) -> str:
        with translating_errors(f"{self.uri}/{key}", OSError):
            return sha256_of(self._existing(key))

    def delete(self, key: str) -> None:
        with translating_errors(f"{self.uri}/{key}", OSError):
            path = self._root / safe_key(key)
            self._contained(path.parent, key)
            path.unlink(missing_ok=True)

    def abort_stale_uploads(self, prefix: str = "") -> int:
        with translating_errors(self.uri, OSError):
            left = [
                path
                for path in self._root.rglob(f"{TEMPORARY}*")
                if within(path.relative_to(self._root).as_posix(), prefix)
            ]
            for path in left:
                path.unlink(missing_ok=True)
            return len(left)

    def begin_upload(self, key: str) -> str:
        return safe_key(key)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Nothing was begun: a directory has no writes in parts."""

    def _existing(self, key: str) -> Path:
        path = self._contained(self._root / safe_key(key), key)
        if not path.exists():
            raise InputError(f"{path}: there is no such file")
        return path

    def _contained(self, path: Path, key: str) -> Path:
        """`path` unless a link on the way leads out of the root."""
        if not path.resolve().is_relative_to(self._root):
            raise PolicyError(
                "a link leads out of the directory", found=ascii(key), expected=f"a file below {self.uri}"
            )
        return path

    @contextmanager
    def _replacing(self, key: str, size_bytes: int) -> Iterator[IO[bytes]]:
        path = self._root / safe_key(key)
        self._contained(path.parent, key)
        with _room(path, size_bytes):
            for folder in (*reversed(path.parent.parents), path.parent):
                folder.mkdir(FOLDER_MODE, exist_ok=True)
            with _whole(path) as out:
                yield out
        _sync_folder(path.parent)


def _listed(folder: Path, folders: builtins.list[str], files: builtins.list[str]) -> Iterator[Path]:
    """Everything in `folder` that is not itself a folder; a link to one counts, for nobody follows it."""
    yield from (folder / name for name in files)
    yield from (path for name in folders if (path := folder / name).is_symlink())


@contextmanager
def _room(path: Path, size_bytes: int) -> Iterator[None]:
    """Says, where the disk is full, how much room there was for `path`, and how much its bytes need."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        there = next(folder for folder in path.parents if folder.is_dir())
        free = shutil.disk_usage(there).free
        raise CapacityError(
            f"{path}: the disk is full",
            where="",
            found=f"{free} bytes free",
            expected=f"{size_bytes} bytes",
            hint=DISK_HINT,
        ) from error


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at `path` complete and on disk, or not at all."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
