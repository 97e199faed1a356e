"""Where a model or data can come from: the Hub, S3, or a local path, with one small protocol."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from job.errors import InputError, JobError
from job.hub.origin import HubOrigin
from job.spec.data_rules import hub_name
from job.store import S3Store, Stored, safe_key, split_s3
from job.store.base import local_path, translating_errors

LISTED_NAMES = 10_000  # of a folder, among which a near one is looked for
GLIMPSED_FILES = 1000
HUBS = {"model": "hf://", "dataset": "hf://datasets/"}


class Place(Protocol):
    """A folder somewhere. `stage` makes some of its files appear below a local folder, under the same names."""

    public_id: str

    @property
    def revision(self) -> str | None:
        """The commit everything is read from, where the place has commits."""

    @property
    def licence(self) -> str | None:
        """What the place says the licence is."""

    def files(self) -> list[Stored]:
        """Every file with its size, names relative and plain, sorted."""

    def stage(self, names: Iterable[str], folder: Path) -> None:
        """Each of `names` as a file `folder/name`, whole."""


def at_revision(address: str, revision: str | None) -> str:
    """The same place at that commit, where the place has commits."""
    return f"{address.partition('@')[0]}@{revision}" if revision and address.startswith("hf://") else address


class LocalOrigin:
    """A directory of this machine, or one file of it. Files are staged as links: nothing is copied or written there."""

    revision = None
    licence = None

    def __init__(self, path: str, hub: str) -> None:
        """`hub`: the Hub's prefix that would fit here."""
        given = local_path(path)
        if not os.path.exists(given):
            raise _absent(path, given, hub)
        self._root = given.resolve()
        self._is_file = given.is_file()
        # Not the whole path: where a container happened to have it says nothing to a reader.
        self.public_id = Path(os.path.abspath(given)).name

    def files(self) -> list[Stored]:
        return sorted(self._walk(), key=lambda f: f.key)

    def glimpse(self) -> dict[str, Path]:
        """Names and paths of the first files, those at the top before others; nothing is read or staged."""
        names = (file.key for file in islice(self._walk(), GLIMPSED_FILES))
        return {name: self._root if self._is_file else self._root / name for name in names}

    def _walk(self) -> Iterator[Stored]:
        if self._is_file:
            yield Stored(safe_key(self.public_id), self._root.stat().st_size)
            return
        with translating_errors(str(self._root), OSError):
            for folder, _, names in os.walk(self._root):
                for path in (Path(folder, name) for name in names):
                    if path.is_file():
                        yield Stored(safe_key(path.relative_to(self._root).as_posix()), path.stat().st_size)

    def stage(self, names: Iterable[str], folder: Path) -> None:
        for name in names:
            source = self._root if self._is_file else self._root / name
            link = folder / name
            with translating_errors(str(source), OSError):
                link.parent.mkdir(parents=True, exist_ok=True)
                if link.is_symlink():
                    link.unlink()
                if link.exists():  # perhaps the very file that is to be staged
                    raise InputError(f"{link} is there already", expected="a work directory of this run alone")
                link.symlink_to(source.resolve())


def _absent(path: str, given: Path, hub: str) -> InputError:
    """Where `path` was looked for, and what it may have meant: a near name there, or a model or data set of the Hub."""
    whole = Path(os.path.abspath(given))
    folder = next(parent for parent in whole.parents if parent.is_dir())
    missing, *rest = whole.relative_to(folder).parts
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, LISTED_NAMES)]
    except OSError:  # may be entered and not listed
        names = []
    near = [Path(folder, name, *rest) for name in difflib.get_close_matches(missing, names, 3, 0.6)]
    meant = [str(other.relative_to(folder)) for other in near if other.exists()]
    if not meant and folder == Path.cwd() and hub_name(path):
        meant = [f"{hub}{path}"]
    return InputError(
        f"there is no such file or directory in {folder}",
        found=ascii(path),
        expected=f"a path, {hub}… or s3://…",
        hint=f"Did you mean {' or '.join(meant)}?" if meant else "",
    )


class S3Origin:
    """What is at `s3://bucket/prefix`: the objects below it, or the one object that has this key."""

    revision = None
    licence = None

    def __init__(self, uri: str) -> None:
        bucket, key = split_s3(uri)
        folder, _, self._name = key.rpartition("/")
        self._store = S3Store(f"s3://{bucket}/{folder}")
        self.public_id = uri.rstrip("/")

    def files(self) -> list[Stored]:
        found = self._store.list(self._name)
        below = len(self._name) + 1 if self._name else 0
        return [f if f.key == self._name else Stored(f.key[below:], f.bytes) for f in found]

    def stage(self, names: Iterable[str], folder: Path) -> None:
        for name in names:  # each in parallel parts
            self._store.download(self._key(name), folder / name)

    def _key(self, name: str) -> str:
        return name if name == self._name or not self._name else f"{self._name}/{name}"


@contextmanager
def pointed(pointer: str) -> Iterator[None]:
    """Say at which place of the spec a failure belongs."""
    try:
        yield
    except JobError as error:
        raise error.at(pointer) from error


def origin_of(address: str, kind: Literal["model", "dataset"]) -> Place:
    """Where a model or a data set is."""
    if address.startswith("hf://"):
        return HubOrigin(address, kind)
    return S3Origin(address) if address.startswith("s3://") else LocalOrigin(address, HUBS[kind])
