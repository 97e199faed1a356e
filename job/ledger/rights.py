"""What a run will need to be allowed at a store, tried with a small object before anything is paid for."""

from __future__ import annotations

from collections.abc import Callable

from job.errors import Fault, InputError, TransientError
from job.host.log import Log
from job.ledger.manifest import CHECKPOINTS
from job.store import Store
from job.store.base import is_there

CONTENT = b"Written and removed by tunejob to see what it may do here.\n"
TRIES = 10
WORK = f"checkpoints, receipts and the lease, all below {CHECKPOINTS}/,"


def require_rights(store: Store, run_id: str, where: str, log: Log) -> None:
    """Writes, reads and deletes a small object, and begins an upload in parts, which it aborts: seven requests at S3.

    `where`: of the spec, what names the store. Raises `InputError` with every right that is missing. Without the rights
    to delete and to abort a run goes on; the log says what it will not remove.
    """
    probe = f"{CHECKPOINTS}/{run_id}/rights"
    unwritten = _refused(lambda: store.write(probe, CONTENT))
    missing = unwritten or _refused(lambda: _read_back(store, probe))
    uploads: list[str] = []
    missing += _refused(lambda: uploads.append(store.begin_upload(probe)))
    kept_uploads = _refused(lambda: store.abort_upload(probe, uploads[0])) if uploads else []
    kept_objects = [] if unwritten else _refused(lambda: store.delete(probe))
    if missing:
        raise InputError(*missing).at(where)
    for refused, what in ((kept_uploads, "uploads that are cut short"), (kept_objects, WORK)):
        if refused:
            log("rights", note=f"{what} will stay at {store.uri}", where=where, reason=str(refused[0]))


def _read_back(store: Store, key: str) -> None:
    """Reads what was written; writes it again where another process of this run has removed it meanwhile."""
    refusal: InputError | None = None
    for _ in range(TRIES):
        try:
            content = store.read(key)
        except InputError as error:
            refusal = error
            if not is_there(store, key):
                store.write(key, CONTENT)
        else:
            if content != CONTENT:
                raise TransientError(f"{store.uri}/{key}: what was read back is not what was written")
            return
    if refusal:
        raise refusal


def _refused(use: Callable[[], object]) -> list[Fault]:
    """What the store says against it; any other failure is not about rights."""
    try:
        use()
    except InputError as refusal:
        return list(refusal.faults)
    return []
