"""Artefacts on their way to the store, some files at once, while others are made and tested.

Uploads are threads; all else (receipts, log, scratch) stays with the thread that asks what has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from job.host.cgroup import usable_cores
from job.host.log import Bar, Log
from job.ledger.leftovers import optional
from job.ledger.manifest import File, store_file
from job.store import Store

AT_ONCE, CORES_PER_FILE = 4, 4  # each is read twice, by its hash and by the store


@dataclass(frozen=True)
class OnTheWay:
    """An artefact's files, their bars, and what is to be done once all of them are stored."""

    name: str
    files: list[Future[File]]
    bars: list[Bar]
    then: Callable[[list[File]], None]

    def arrived(self) -> bool:
        """Whether nothing of it is at work any more; what could not be stored is so as well."""
        return all(file.done() for file in self.files)

    def given_up(self) -> bool:
        return any(file.cancelled() for file in self.files)

    def end(self) -> None:
        """Of what has arrived. Raises what an upload failed of."""
        for bar in self.bars:
            bar.end()
        self.then([file.result() for file in self.files])


class Storing:
    """What is on its way, in the order in which it was begun."""

    def __init__(self, store: Store, log: Log) -> None:
        self._store, self._log = store, log
        self._pool = ThreadPoolExecutor(max(1, min(AT_ONCE, usable_cores() // CORES_PER_FILE)), "store")
        self._on_the_way: list[OnTheWay] = []

    @property
    def names(self) -> list[str]:
        return [artefact.name for artefact in self._on_the_way]

    def begin(self, name: str, files: Mapping[str, Path], then: Callable[[list[File]], None]) -> None:
        """`files` by key; `then` is called by `note`, with what was stored."""
        bars = [self._log.live(f"stores {key}").begin() for key in files]
        stored = [self._pool.submit(store_file, self._store, path, key) for key, path in files.items()]
        self._on_the_way.append(OnTheWay(name, stored, bars, then))

    def note(self, every: bool = False) -> None:
        """Takes note of what has arrived; of `every` artefact, once it has. Raises what an upload failed of."""
        for artefact in list(self._on_the_way):
            if every:
                wait(artefact.files)
            if artefact.arrived():
                self._on_the_way.remove(artefact)
                artefact.end()

    @contextmanager
    def to_the_end(self) -> Iterator[None]:
        """Afterwards everything has arrived. Where the work within fails or is stopped, what is being uploaded arrives
        all the same, as far as the time for a stop allows, and what is whole is noted: nothing of this run is written
        once its lease is given back.
        """
        try:
            yield
            self.note(every=True)
        finally:
            self._pool.shutdown(cancel_futures=True)
            for artefact in self._on_the_way:  # none, unless the work has failed
                if not artefact.given_up():
                    with optional(self._log, f"{artefact.name} is not stored"):
                        artefact.end()
