"""Whose an output is. A run claims it with the first thing that is worth keeping: `spec.json` is written right before
the first artefact, receipt or checkpoint.

Until then there is at most a lease, the trial of rights and the report of a failure, and the next run may replace
them, whatever its spec. Who writes is decided by the lease: of two runs with different specs one works, and the other
is refused once something is stored.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from job.errors import Fault, GateError, InputError
from job.host.log import Log
from job.ledger.evidence import forget_failure, json_object, unclaimed
from job.ledger.lease import Lease
from job.ledger.manifest import MANIFEST, SPEC, File, Manifest, read_manifest, size_faults, stored_file
from job.ledger.receipts import PINNED, Receipts
from job.ledger.replace import Replacement, carry_out
from job.spec import JobSpec
from job.spec.differences import differences
from job.spec.identity import run_id_of
from job.store import Store
from job.store.base import is_there

DAMAGED_HINT = "tunejob verify names every damaged file; tunejob run --replace SPEC trains anew"
FOREIGN_HINT = "Choose an empty prefix"
OTHER_HINT = "Take another output.uri ({run_id} in it will do), the old values, or run --replace"


def examine(store: Store, spec: JobSpec) -> Manifest | None:
    """The manifest if this very run has already finished there, else None: `spec` may go on there. Writes nothing.

    Raises `InputError` if the address holds another run, anything of unknown origin, or a finished run of which a file
    is missing or has another size.
    """
    sizes = {item.key: item.bytes for item in store.list()}
    if MANIFEST in sizes:
        try:
            manifest = read_manifest(store)
        except GateError as error:
            raise InputError(*error.faults) from error
        if manifest.run_id != spec.run_id:
            raise _refusal(store, manifest.run_id, spec, _stored_spec(store) if SPEC in sizes else {})
        if damaged := size_faults(manifest, sizes):
            count = f"{len(damaged)} files missing or changed"
            raise InputError(
                Fault(f"{store.uri}: the finished run is damaged", found=count, hint=DAMAGED_HINT), *damaged
            )
        return manifest
    if SPEC in sizes:
        stored = _stored_spec(store)
        if not stored:
            raise _foreign(store, f"a {SPEC} that cannot be read", spec)
        if run_id_of(stored) != spec.run_id:
            raise _refusal(store, run_id_of(stored), spec, stored)
    elif unknown := unclaimed(store, sizes):
        raise _foreign(store, f"{unknown[0]} without {SPEC}", spec)
    return None


class Claim:
    """The output as one run's own, from `hold` on."""

    def __init__(
        self, store: Store, spec: JobSpec, lease: Lease, receipts: Receipts, log: Log, planned: Replacement | None
    ) -> None:
        """`planned`: what `clear` deletes. Until then the output stays as it is."""
        self._store, self._spec, self._lease, self._receipts, self._log = store, spec, lease, receipts, log
        self._planned = planned
        self._revisions: Mapping[str, str] = {}
        self._held = False
        self._lock = threading.Lock()  # checkpoints are stored by a thread of their own

    def takes_reports(self) -> bool:
        """Whether the report of a failure may be stored: not over what is still to be replaced, nor over a result.

        Raises `TransientError` if the lease is lost: others work there.
        """
        self._lease.require()
        return not (self._planned and self._planned.owners) and not is_there(self._store, MANIFEST)

    def clear(self) -> bool:
        """Deletes what is to be replaced, if anything is, once the run is found to be sound; whether it was asked to.

        Raises as `carry_out` does.
        """
        planned = self._planned
        if planned is not None:
            carry_out(planned, self._store, self._lease, self._log)
        self._planned = None
        return planned is not None

    def pin(self, revisions: Mapping[str, str]) -> None:
        """The Hub's commits that are read, by place in the spec; written down with the claim."""
        self._revisions = revisions

    def hold(self) -> None:
        """To be called before anything worth keeping is stored. Raises `TransientError` if the lease is lost."""
        with self._lock:
            if self._held:
                return
            if not is_there(self._store, SPEC):
                self._lease.require()
                forget_failure(self._store, self._log)
                self._store.write(SPEC, spec_bytes(self._spec))
                self._lease.require()  # who was overtaken in between stores nothing else
            if self._revisions and PINNED not in self._receipts:
                self._receipts.add(PINNED, [], {"revisions": dict(self._revisions)})
            self._held = True

    def spec_file(self) -> File:
        """The stored spec, for the manifest. One that was written over by who was overtaken is written again."""
        if run_id_of(_stored_spec(self._store)) != self._spec.run_id:
            self._store.write(SPEC, spec_bytes(self._spec))
        return stored_file(self._store, SPEC)


def spec_bytes(spec: JobSpec) -> bytes:
    """The resolved spec as it is stored."""
    return (json.dumps(spec.resolved, indent=2, ensure_ascii=False) + "\n").encode()


def _stored_spec(store: Store) -> dict[str, Any]:
    """As it was resolved by the version that stored it; empty where it cannot be read."""
    return json_object(store.read(SPEC))


def _refusal(store: Store, found: str, spec: JobSpec, stored: Mapping[str, Any]) -> InputError:
    """The output is another run's: which keys differ, if that is known."""
    differing = differences(dict(stored), spec.resolved) if stored else []
    where = [fault.where for fault in differing if fault.where]
    names = f", which differs at {', '.join(where)}" if where else ""
    return InputError(_fault(store, f"run {found}{names}", spec, OTHER_HINT), *differing)


def _foreign(store: Store, found: str, spec: JobSpec) -> InputError:
    return InputError(_fault(store, found, spec, FOREIGN_HINT))


def _fault(store: Store, found: str, spec: JobSpec, hint: str) -> Fault:
    return Fault(
        f"{store.uri}: this prefix belongs to another run",
        where="/output/uri",
        found=found,
        expected=f"nothing, or run {spec.run_id}",
        hint=hint,
    )
