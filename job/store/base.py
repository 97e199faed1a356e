"""The protocol of a store, the rule for its keys, and how it raises a vendor's failure."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from job.errors import InputError, JobError, PolicyError, TransientError, classify

TEMPORARY = ".tunejob-"  # names that start so are unfinished writes: never listed
MAX_PART_BYTES = 255  # what file systems take for one name


@dataclass(frozen=True)
class Stored:
    """One object: its key relative to the store, and its size."""

    key: str
    bytes: int


def local_path(address: str | Path) -> Path:
    """The path that `address` means, its `~` replaced. Raises `InputError` where that is nobody's home."""
    try:
        return Path(address).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"there is no such path: {error}", found=ascii(str(address)), expected="a path of this machine"
        ) from error


class Store(Protocol):
    """Objects under one address. Keys are plain relative paths (`safe_key`), values appear whole or not at all.

    Every method raises `PolicyError` for an unsafe key, `InputError` for what is missing or denied, `TransientError`
    for the network, `CapacityError` for a full disk.
    """

    uri: str

    def list(self, prefix: str = "") -> list[Stored]:
        """The object `prefix` and all below the folder `prefix`, keys relative to the store, sorted."""

    def read(self, key: str) -> bytes:
        """The whole of a small object."""

    def write(self, key: str, data: bytes) -> None:
        """Store a small object."""

    def upload(self, path: Path, key: str) -> None:
        """Store a local file of any size."""

    def download(self, key: str, path: Path) -> None:
        """Bring an object to `path`, whose folders are made."""

    def sha256(self, key: str) -> str:
        """Hex digest of the bytes stored now, in flat memory."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is not an error."""

    def abort_stale_uploads(self, prefix: str = "") -> int:
        """Remove what killed processes left of unfinished writes below the folder `prefix`; returns how many there
        were.

        Only for who alone writes there: an upload that goes on is aborted like any other.
        """

    def begin_upload(self, key: str) -> str:
        """Begin a write in parts; its id, for `abort_upload`. `upload` does this by itself: for the test of rights."""

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Remove what was begun."""


def safe_key(key: str) -> str:
    """`key` if it is a plain relative path. Raises `PolicyError` otherwise: keys come from servers and indexes."""
    parts = key.split("/")
    if not key or "" in parts:
        reason = "absolute, or with an empty part"
    elif "." in parts or ".." in parts:
        reason = "with a dot part that could point out of the folder"
    elif "\\" in key or any(unicodedata.category(c) in ("Cc", "Cs") for c in key):
        reason = "with a backslash, a control character or a lone surrogate"
    elif any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        reason = f"with a part longer than {MAX_PART_BYTES} bytes"
    elif any(part.startswith(TEMPORARY) for part in parts):
        reason = f"with a part that starts with {TEMPORARY}"
    else:
        return key
    shown = ascii(key) if len(key) <= 200 else f"{key[:200]!a}…"
    raise PolicyError(f"not a key the job will use: {reason}", found=shown, expected="a plain relative path")


def within(key: str, prefix: str) -> bool:
    """Whether `key` is `prefix` or is in the folder `prefix`; `train-old` is not in `train`."""
    return not prefix or key == prefix or key.startswith(f"{prefix}/")


def split_s3(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b/` as (`bucket`, `a/b`). Raises `InputError` without bucket, `PolicyError` for an unsafe key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise InputError("not an S3 address", found=ascii(uri), expected="s3://bucket/prefix")
    key = key.strip("/")
    return bucket, safe_key(key) if key else ""


@contextmanager
def translating_errors(
    address: str, *vendor: type[BaseException], advice: Callable[[BaseException], Mapping[str, str]] = lambda _: {}
) -> Iterator[None]:
    """Turn a vendor's exception into the `JobError` it means, saying at which address it happened.

    `advice`: what else the fault should say, `expected` and `hint`, where the vendor's words do not help.
    """
    try:
        yield
    except JobError:
        raise
    except vendor as error:
        said = " ".join(str(error).split())
        raise type(classify(error))(f"{address}: {type(error).__name__}: {said}", **advice(error)) from error


def is_there(store: Store, key: str) -> bool:
    return any(item.key == key for item in store.list(key))


def sha256_of(path: Path) -> str:
    """Of a file of this machine, in hex."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_size(address: str, found: int, expected: int) -> None:
    """Raises `TransientError` when a copy is not as long as its original."""
    if found != expected:
        raise TransientError(f"{address}: the copy is not whole", found=f"{found} bytes", expected=f"{expected} bytes")
