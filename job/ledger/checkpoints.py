"""Checkpoints of a training in the store: each is whole or not there, and the newest whole one is found again.

    checkpoints/<run id>/step-00000120/weights.safetensors, optimizer.pt, scheduler.pt, rng_state.pth, …
    checkpoints/<run id>/step-00000120/checkpoint.json    written last: what it continues, size and SHA-256 of each file

Nothing of a checkpoint is opened before its digest is found to be the one that was written down.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from job import __version__
from job.errors import CapacityError, Fault, InputError, JobError, TransientError
from job.host.log import Log
from job.ledger.leftovers import abort_uploads, discard, optional
from job.ledger.manifest import CHECKPOINTS, File, store_file
from job.spec import CheckpointsSpec
from job.store import Store
from job.store.base import sha256_of

MANIFEST = "checkpoint.json"
STEP = re.compile(r"step-(\d{8})")
LIMIT = "/output/checkpoints/max_failures"
ELSEWHERE = "made on another machine: the training goes on, but not bit for bit"
REMOVE = "Bring back what it was trained on, or remove the checkpoint to begin anew"


@dataclass(frozen=True)
class TrainingOrigin:
    """What a checkpoint can continue: the run; the base's public id and revision, the hash of an adapter that it goes
    on from and that of code that rewards; the digest of all training sequences.
    """

    run_id: str
    base: str
    data: str

    def require(self, found: Mapping[str, str], what: str, hint: str) -> None:
        """Raises `InputError` if `what` is of another origin, `found`."""
        wanted = asdict(self)
        faults = [
            Fault(f"{what} another {part}", where=pointer, found=found.get(key, ""), expected=wanted[key], hint=hint)
            for key, part, pointer in (
                ("run_id", "run", "/output/checkpoints"),
                ("base", "base model, adapter or reward", "/model/source"),
                ("data", "set of rows", "/data/train"),
            )
            if found.get(key, "") != wanted[key]
        ]
        if faults:
            raise InputError(*faults)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, brought here and verified."""

    step: int
    folder: Path
    elsewhere: Mapping[str, list[str]] = field(default_factory=dict)  # of the machine, what differs: there and here


class Checkpoints:
    """The checkpoints of one run. At most one is on its way to the store while the training goes on."""

    def __init__(
        self,
        store: Store,
        origin: TrainingOrigin,
        spec: CheckpointsSpec,
        log: Log,
        machine: Mapping[str, str],
        claim: Callable[[], None],
    ) -> None:
        """`machine`: what decides the last places of figures (`stats.arithmetic`). `claim` is called before storing."""
        self._claim = claim
        self._store = store
        self.origin = origin
        self._spec = spec
        self._log = log
        self._machine = machine
        self._folder = f"{CHECKPOINTS}/{origin.run_id}"
        self._uploader = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[JobError | None] | None = None
        self._failures = 0
        self._held: tuple[int, Path] | None = None
        self.store_uri = store.uri
        self.stored = 0

    def newest(self, folder: Path) -> Checkpoint | None:
        """The newest whole checkpoint, below `folder`; damaged ones are reported and passed over.

        Raises `InputError` for one of another run, base or data: going on with it would not be this training.
        """
        abort_uploads(self._store, self._folder, self._log)
        sizes = {item.key: item.bytes for item in self._store.list(self._folder)}
        for step in sorted(self._steps(sizes), reverse=True):
            found = self._fetch(step, sizes, folder)
            if isinstance(found, Checkpoint):
                self._log("resume", step=step, checkpoint=f"{self._store.uri}/{self._key(step)}")
                if found.elsewhere:
                    self._log("resume", step=step, note=ELSEWHERE, **found.elsewhere)
                return found
            self._log("checkpoint", step=step, note="not used", reason=found)
            shutil.rmtree(folder / _name(step), ignore_errors=True)
        return None

    def send(self, step: int, folder: Path) -> None:
        """Uploads `folder` in the background and removes it; waits for the one before.

        Raises `TransientError` once `max_failures` in a row could not be stored, `CapacityError` if for lack of disk.
        """
        self.wait()
        self._pending = self._uploader.submit(self._upload, step, folder)

    def wait(self) -> None:
        """Returns when nothing is on its way. Raises as `send` does."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        error = pending.result()
        if error is None:
            self._failures = 0
        else:
            self._count(error)

    def miss(self, step: int, error: JobError) -> None:
        """Counts a checkpoint that could not even be made here, for lack of disk, as one that could not be stored.

        Raises as `send` does, but `CapacityError`.
        """
        self.wait()
        self._log("checkpoint", step=step, note="could not be made", reason=str(error.faults[0]))
        self._count(error)

    def _count(self, error: JobError) -> None:
        self._failures += 1
        if self._failures < self._spec.max_failures:
            return
        first, said = error.faults[0], f"{self._failures} checkpoints in a row could not be stored"
        if isinstance(error, CapacityError):
            raise CapacityError(replace(first, message=f"{said}: {first.message}", where=LIMIT)) from error
        raise TransientError(
            said,
            where=LIMIT,
            found=str(first),
            expected="a store that takes them",
            hint="The same spec continues the training",
        ) from error

    def hold(self, step: int, folder: Path) -> None:
        """The end of the training, kept here: `until_stored` sends it where the weights come to no other place."""
        self._held = step, folder

    @property
    def held(self) -> Path | None:
        return self._held[1] if self._held else None

    @contextmanager
    def until_stored(self) -> Iterator[None]:
        """Within, there is training, and what was trained is stored. Where that fails or is stopped once training has
        ended, its end goes to the store as a checkpoint, and a rerun begins after it.
        """
        stored = False
        try:
            yield
            stored = True
        finally:
            held, self._held = self._held, None
            if held and not stored:
                self._upload(*held)
            elif held:
                shutil.rmtree(held[1], ignore_errors=True)

    def remove(self) -> None:
        """All of them, once what was trained is stored itself."""
        self.wait()
        remove_checkpoints(self._store, self.origin.run_id, self._log)

    def _upload(self, step: int, folder: Path) -> JobError | None:
        try:
            paths = sorted(path for path in folder.iterdir() if path.is_file())
            self._claim()
            files = [store_file(self._store, path, f"{self._key(step)}/{path.name}") for path in paths]
            self._store.write(f"{self._key(step)}/{MANIFEST}", _encode(step, self.origin, self._machine, files))
            self.stored += 1
            self._log("checkpoint", step=step, bytes=sum(file.bytes for file in files), note="stored")
        except JobError as error:
            self._log("checkpoint", step=step, note="could not be stored", reason=str(error.faults[0]))
            return error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._forget_older()
        return None

    def _forget_older(self) -> None:
        """Keeps the newest whole ones; parts of uploads that a kill cut short go too."""
        with optional(self._log, "older checkpoints could not be looked for"):
            keys = _keys(self._store, self._folder)
            kept = sorted(self._steps(keys))[-self._spec.keep :]
            old = [key for key in keys if not any(key.startswith(f"{self._key(step)}/") for step in kept)]
            _discard(self._store, old, self._log)

    def _fetch(self, step: int, sizes: Mapping[str, int], folder: Path) -> Checkpoint | str:
        """Brings a checkpoint here, or says what is wrong with it."""
        content = _decode(self._store.read(f"{self._key(step)}/{MANIFEST}"))
        if content is None:
            return f"{MANIFEST} is damaged"
        self.origin.require(content["origin"], f"the checkpoint of step {step} continues", REMOVE)
        files = [File(**item) for item in content["files"]]
        for file in files:
            if sizes.get(file.key) != file.bytes:
                return f"{file.key}: {sizes.get(file.key, 'no')} bytes instead of {file.bytes}"
        for file in files:
            path = folder / _name(step) / file.key.rpartition("/")[2]
            self._store.download(file.key, path)
            if sha256_of(path) != file.sha256:
                return f"{file.key}: its SHA-256 is not the one that was written down"
        made_on = content["machine"]
        names = sorted(
            name for name in made_on.keys() | self._machine.keys() if made_on.get(name) != self._machine.get(name)
        )
        elsewhere = {name: [str(made_on.get(name, "")), self._machine.get(name, "")] for name in names}
        return Checkpoint(step, folder / _name(step), elsewhere)

    def _steps(self, keys: Mapping[str, int] | list[str]) -> list[int]:
        """Of those that have a manifest."""
        found = (STEP.fullmatch(key.split("/")[-2]) for key in keys if key.endswith(f"/{MANIFEST}"))
        return [int(match[1]) for match in found if match]

    def _key(self, step: int) -> str:
        return f"{self._folder}/{_name(step)}"


def remove_checkpoints(store: Store, run_id: str, log: Log) -> None:
    """Every checkpoint of a run, whole or not."""
    folder = f"{CHECKPOINTS}/{run_id}"
    abort_uploads(store, folder, log)
    with optional(log, "checkpoints could not be looked for"):
        _discard(store, _keys(store, folder), log)


def _keys(store: Store, folder: str) -> list[str]:
    return [item.key for item in store.list(folder) if STEP.search(item.key)]


def _discard(store: Store, keys: list[str], log: Log) -> None:
    """Manifests first: what has lost its own is not a checkpoint."""
    discard(store, sorted(keys, key=lambda key: not key.endswith(MANIFEST)), log)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _encode(step: int, origin: TrainingOrigin, machine: Mapping[str, str], files: list[File]) -> bytes:
    content = {
        "step": step,
        "origin": asdict(origin),
        "machine": dict(machine),
        "files": [asdict(file) for file in files],
        "tunejob": __version__,
    }
    return json.dumps(content | {"sha256": _digest(content)}, indent=1).encode()


def _decode(raw: bytes) -> dict[str, Any] | None:
    """None unless these are the bytes of a checkpoint's manifest, all of them."""
    try:
        content = json.loads(raw)
        digest = content.pop("sha256")
        TrainingOrigin(**content["origin"])
        content["machine"].keys()
        keys = [File(**item).key for item in content["files"]]
        if not keys or not all(isinstance(key, str) for key in keys):
            return None
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    return content if digest == _digest(content) else None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
