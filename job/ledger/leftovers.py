"""What a run no longer needs: removed where the store allows it, reported where it does not, never a failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from job.errors import Interrupted, JobError
from job.host.log import Log
from job.ledger.manifest import CHECKPOINTS
from job.store import Store


def discard(store: Store, keys: Sequence[str], log: Log) -> None:
    """Deletes objects in this order, up to the first that cannot be: a store that refuses one refuses them all."""
    for done, key in enumerate(keys):
        try:
            store.delete(key)
        except Interrupted:
            raise
        except JobError as error:
            log(
                "leftovers",
                note="what is no longer needed could not be removed",
                objects=len(keys) - done,
                first=key,
                reason=str(error.faults[0]),
            )
            return


def remove_run_folder(store: Store, run_id: str, log: Log) -> None:
    """Everything below the folder of a finished run's checkpoints and receipts, which a kill may have left."""
    with optional(log, "what an earlier try left could not be looked for"):
        discard(store, [item.key for item in store.list(f"{CHECKPOINTS}/{run_id}")], log)


def abort_uploads(store: Store, prefix: str, log: Log) -> None:
    """Unfinished uploads of tries that were killed; a store that does not allow it is reported, and keeps them."""
    with optional(log, "unfinished uploads could not be removed"):
        if aborted := store.abort_stale_uploads(prefix):
            log("leftovers", note="unfinished uploads of an earlier try are removed", uploads=aborted)


@contextmanager
def optional(log: Log, note: str) -> Iterator[None]:
    """What a store refuses in this block is reported, and nothing else comes of it."""
    try:
        yield
    except Interrupted:
        raise
    except JobError as error:
        log("leftovers", note=note, reason=str(error.faults[0]))
