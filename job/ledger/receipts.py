"""What earlier tries of this very run have stored and proven, so that a rerun begins at the first artefact that is
missing.

A receipt is a small document under `checkpoints/<run id>/done/`, written after the artefact's files are stored.
Receipts are removed once the manifest, which then lists the same files, is published.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from job.host.log import Log
from job.ledger.leftovers import discard
from job.ledger.manifest import CHECKPOINTS, File
from job.store import Store

TRAINED = "trained"  # the receipt of the adapter, or whole weights, and the report
PINNED = "pinned"  # the receipt of the Hub's commits that were read, by place in the spec
MERGED_ONTO = "merged_onto"  # in the statistics, and the receipt of which base was taken
WITHOUT_FILES = (PINNED, MERGED_ONTO)  # what was found out or decided


@dataclass(frozen=True)
class Receipt:
    """The files of one artefact, and what its stage found out (figures for report and manifest)."""

    files: tuple[File, ...]
    facts: Mapping[str, Any]


class Receipts:
    """The receipts of one run, by the name of the artefact; each is re-hashed once before it is believed."""

    def __init__(self, store: Store, run_id: str, log: Log, anew: bool = False) -> None:
        """`anew`: what is there is not looked at, for it is to be replaced."""
        self._store, self._log = store, log
        self._folder = _folder(run_id)
        self._found: dict[str, Receipt] = {}
        stored = {} if anew else {item.key: item.bytes for item in store.list()}
        for key, name in _names(stored, run_id).items():
            receipt = _decoded(store.read(key), name)
            lost = next((file.key for file in receipt.files if not self._holds(file, stored)), None) if receipt else key
            if receipt is None or lost:
                log("receipt", name=name, note="not believed: its file is gone or changed", file=lost)
            else:
                self._found[name] = receipt

    def _holds(self, file: File, stored: Mapping[str, int]) -> bool:
        return stored.get(file.key) == file.bytes and self._store.sha256(file.key) == file.sha256

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Receipt:
        return self._found[name]

    def names(self) -> list[str]:
        return sorted(self._found)

    def add(self, name: str, files: Sequence[File], facts: Mapping[str, Any]) -> Receipt:
        """Writes the receipt of files that are stored already."""
        receipt = Receipt(tuple(files), facts)
        document = {"files": [asdict(file) for file in files], "facts": facts}
        self._store.write(f"{self._folder}/{name}.json", json.dumps(document).encode())
        self._found[name] = receipt
        return receipt

    def files(self) -> list[File]:
        """Every file of every receipt."""
        return [file for name in self.names() for file in self._found[name].files]

    def clear(self) -> None:
        """After publication: the manifest says the same from now on."""
        discard(self._store, [f"{self._folder}/{name}.json" for name in self.names()], self._log)


def listed_files(store: Store, run_id: str, stored: Iterable[str]) -> list[File]:
    """What the receipts of a run list, whether it is there or not; `stored`: every key of the store."""
    return [file for receipt in receipts_of(store, run_id, stored).values() for file in receipt.files]


def receipts_of(store: Store, run_id: str, stored: Iterable[str]) -> dict[str, Receipt]:
    """By name those of a run that are whole, whether what they list is there or not; `stored`: every key."""
    found = {name: _decoded(store.read(key), name) for key, name in _names(stored, run_id).items()}
    return {name: receipt for name, receipt in found.items() if receipt}


def _folder(run_id: str) -> str:
    return f"{CHECKPOINTS}/{run_id}/done"


def _names(stored: Iterable[str], run_id: str) -> dict[str, str]:
    """Of `stored`, the keys of a run's receipts, with the name of each."""
    folder = f"{_folder(run_id)}/"
    return {key: key.removeprefix(folder).removesuffix(".json") for key in stored if key.startswith(folder)}


def _decoded(raw: bytes, name: str) -> Receipt | None:
    """None for a receipt that is damaged, or lists no file of an artefact, which is then made again."""
    try:
        document = json.loads(raw)
        receipt = Receipt(tuple(File(**item) for item in document["files"]), document["facts"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return receipt if receipt.files or name in WITHOUT_FILES else None
