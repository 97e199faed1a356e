"""One process at a time writes to an output: a lease that its holder keeps renewing, on any store.

Conditional writes are not needed, and no clock is compared with another machine's: a lease is dead when a newcomer
has seen it unchanged for the whole of its time. Of two that begin at once the later write counts, and the other
learns of it at its next look.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Self

from job.errors import InputError, JobError, TransientError
from job.host.log import Log
from job.host.signals import exit_now
from job.host.time_limits import limit
from job.ledger.manifest import CHECKPOINTS
from job.store import Store

KEY = f"{CHECKPOINTS}/lease"
RENEWALS = 5  # in the time of a lease, so that a few lost ones do no harm
HINT = "It ends by itself; the same spec finds its result later"


class Lease:
    """Held while its block runs. A holder that has lost it, say by sleeping, ends at once with exit code 20."""

    def __init__(self, store: Store, log: Log) -> None:
        self._store = store
        self._log = log
        self._seconds = limit("TUNEJOB_LEASE_SECONDS")
        self._holder = uuid.uuid4().hex
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Raises `TransientError` if another process is at work; waits for one that has died to be known as dead."""
        try:
            self._wait_for_the_dead()
            self._renew()
        except JobError as error:
            raise error.at("/output/uri") from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            if self._is_ours():
                self._give_back()
        except JobError as error:
            self._log("lease", note="not given back; it expires by itself", reason=str(error.faults[0]))

    def require(self) -> None:
        """Raises `TransientError` unless the lease is ours now."""
        if not self._is_ours():
            raise self._lost()

    def _wait_for_the_dead(self) -> None:
        seen, deadline = self._read(), time.monotonic() + self._seconds
        if seen is not None:
            self._log(
                "lease",
                note="another process held this output; waiting to see whether it still runs",
                seconds=self._seconds,
            )
        while seen is not None and time.monotonic() < deadline:
            time.sleep(self._seconds / RENEWALS / 2)
            now = self._read()
            if now is not None and now != seen:
                raise TransientError(
                    "another process is at work on this output", where="/output/uri", found=self._store.uri, hint=HINT
                )
            seen = now

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds / RENEWALS):
            began = time.monotonic()
            try:
                if not self._is_ours():
                    exit_now(self._lost())
                self._renew()
            except JobError as error:  # the store is away: nobody else can take the lease there either
                self._log("lease", note="not renewed", reason=str(error.faults[0]))
            else:
                if time.monotonic() - began > self._seconds:  # a newcomer may have taken it, and been written over
                    exit_now(self._lost())

    def _renew(self) -> None:
        self._beats += 1
        self._store.write(KEY, f"{self._holder} {self._beats}".encode())

    def _give_back(self) -> None:
        """An empty one is nobody's: for a store that allows no deletion."""
        try:
            self._store.delete(KEY)
        except InputError:
            self._store.write(KEY, b"")

    def _is_ours(self) -> bool:
        return (self._read() or b"").startswith(self._holder.encode())

    def _read(self) -> bytes | None:
        try:
            return self._store.read(KEY) or None
        except InputError:
            return None

    def _lost(self) -> TransientError:
        return TransientError(
            "another process has taken over this output", where="/output/uri", found=self._store.uri, hint=HINT
        )
