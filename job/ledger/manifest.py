"""What a finished run leaves, and the proof that it is still there. `manifest.json` is written last: it alone means
success.

Form: `schemas/manifest.schema.json`. The manifest carries its own digest and is stored in one exact form, so that a
flipped bit in it shows as surely as one in a file it lists.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from job import __version__
from job.errors import Fault, GateError, TransientError
from job.spec.strict import StrictValidator, load_schema
from job.store import Store, safe_key
from job.store.base import check_size, sha256_of, within

MANIFEST, SPEC, CHECKPOINTS = "manifest.json", "spec.json", "checkpoints"
FORMAT_VERSION = 1
SHOWN_CHARACTERS = 200
CURE = "Bring it back from a copy, or train anew: tunejob run --replace SPEC"
UNLISTED = "It is not a part of the result: remove it, or keep it elsewhere"


@dataclass(frozen=True)
class File:
    """A stored object: key below the output address, size, SHA-256 in hex."""

    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A finished run; the schema describes each member. `results` holds figures by name, also in groups."""

    run_id: str
    name: str
    base: Mapping[str, Any]
    data: Sequence[Mapping[str, str | None]]
    chat_template_sha256: str | None
    packages: Mapping[str, str]
    results: Mapping[str, float | Mapping[str, float | None] | None]
    files: Sequence[File]
    created: str = dataclasses.field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    tunejob: str = __version__
    version: int = FORMAT_VERSION

    def encode(self) -> bytes:
        """The one form in which this manifest is stored. Raises `GateError` for a result that is not finite."""
        content = dataclasses.asdict(self)
        content["files"] = sorted(content["files"], key=lambda file: str(file["key"]))
        try:
            text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except ValueError as error:
            raise GateError("a result is not finite", found=str(self.results)) from error
        whole = content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
        return (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode()


def store_file(store: Store, path: Path, key: str) -> File:
    """Store a local file and say what was stored. Raises `TransientError` if the stored size is another."""
    size = path.stat().st_size
    with ThreadPoolExecutor(1) as beside:  # both read the whole file, and each waits for other things
        digest = beside.submit(sha256_of, path)
        store.upload(path, key)
        check_size(f"{store.uri}/{key}", _stored_size(store, key), size)
        return File(safe_key(key), size, digest.result())


def stored_file(store: Store, key: str) -> File:
    """What is stored under a key now, re-hashed: for what an earlier try of the same run, or `claim`, has written."""
    return File(key, _stored_size(store, key), store.sha256(key))


def publish(store: Store, manifest: Manifest) -> None:
    """Write `manifest.json`, the last write of a run, and read it back.

    Raises `TransientError` if a listed file is not there in its size, or if what comes back is not what was written.
    """
    lost = size_faults(manifest, {item.key: item.bytes for item in store.list()})
    if lost:
        raise TransientError(*lost)
    data = manifest.encode()
    decode(data)
    store.write(MANIFEST, data)
    if store.read(MANIFEST) != data:
        raise TransientError(f"{store.uri}/{MANIFEST}: what was read back is not what was written")


def read_manifest(store: Store) -> Manifest:
    """The manifest of a finished run. Raises `InputError` if there is none, `GateError` if it is damaged."""
    return decode(store.read(MANIFEST))


def verify(store: Store) -> Manifest:
    """Re-hash every file. Raises `GateError` naming each that is missing, changed or not listed."""
    manifest = read_manifest(store)
    sizes = {item.key: item.bytes for item in store.list()}
    faults = size_faults(manifest, sizes)
    wrong_size = {fault.where for fault in faults}
    listed = {file.key for file in manifest.files}
    for file in manifest.files:
        if file.key not in wrong_size and (found := store.sha256(file.key)) != file.sha256:
            faults.append(Fault("changed", where=file.key, found=f"sha256 {found}", expected=f"sha256 {file.sha256}"))
    for key in sorted(sizes.keys() - listed - {MANIFEST}):
        if not within(key, CHECKPOINTS):
            faults.append(Fault("not listed in the manifest", where=key, found=f"{sizes[key]} bytes"))
    if faults:
        cure = UNLISTED if faults[0].where not in listed else CURE
        raise GateError(dataclasses.replace(faults[0], hint=cure), *faults[1:])  # said once for thousands
    return manifest


def size_faults(manifest: Manifest, sizes: dict[str, int]) -> list[Fault]:
    """Listed files that are not there or have another size; the pointer of each fault is its key."""
    faults = []
    for file in manifest.files:
        if file.key not in sizes:
            faults.append(Fault("missing", where=file.key, expected=f"{file.bytes} bytes"))
        elif sizes[file.key] != file.bytes:
            faults.append(
                Fault("changed", where=file.key, found=f"{sizes[file.key]} bytes", expected=f"{file.bytes} bytes")
            )
    return faults


def _stored_size(store: Store, key: str) -> int:
    for item in store.list(key):
        if item.key == key:
            return item.bytes
    raise TransientError(f"{store.uri}/{key}: it was written and is not there")


# ---------------------------------------------------------------------------------------------- form


@cache
def _validator() -> Any:
    return StrictValidator(load_schema("manifest"))


def decode(raw: bytes) -> Manifest:
    """Raises `GateError` unless `raw` is, byte for byte, a manifest as `encode` writes it."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(f": {error}") from error
    errors = _validator().iter_errors(document)
    broken = [f" at {error.json_path}: {error.message[:SHOWN_CHARACTERS]}" for error in errors]
    if broken:
        raise _damaged(*broken)
    del document["sha256"]
    manifest = Manifest(**document | {"files": tuple(File(**item) for item in document["files"])})
    if manifest.encode() != raw:
        raise _damaged(": its digest is not that of its contents")
    keys = [safe_key(file.key) for file in manifest.files]
    if len(set(keys)) < len(keys):
        raise _damaged(": it lists a file twice")
    return manifest


def _damaged(*how: str) -> GateError:
    first, *others = (Fault(f"{MANIFEST} is damaged{words}", where=MANIFEST) for words in how)
    return GateError(dataclasses.replace(first, hint=CURE), *others)
