"""A receipt is believed only while its files are there as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from job.host.log import Log
from job.ledger.manifest import store_file
from job.ledger.receipts import WITHOUT_FILES, Receipts
from job.store import DirectoryStore, Store

RUN_ID = "0123456789abcdef"
FACTS = {"perplexity": 1.5, "samples": [{"prompt": "é"}]}


class Silent(Log):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[dict[str, Any]] = []

    def __call__(self, event: str, **fields: Any) -> None:
        self.logged.append({"event": event, **fields})


def stored(store: Store, folder: Path, contents: dict[str, bytes]) -> Receipts:
    receipts = Receipts(store, RUN_ID, Silent())
    for name, data in contents.items():
        path = folder / name
        path.write_bytes(data)
        receipts.add(name, [store_file(store, path, f"gguf/{name}")], FACTS)
    return receipts


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "out")


def test_a_later_try_finds_what_an_earlier_one_stored(store: DirectoryStore, tmp_path: Path) -> None:
    before = stored(store, tmp_path, {"a": b"one", "b": b"two"})
    after = Receipts(store, RUN_ID, Silent())
    assert after.names() == ["a", "b"]
    assert after["a"].facts == FACTS
    assert after.files() == before.files()
    assert Receipts(store, "f" * 16, Silent()).names() == []


@pytest.mark.parametrize(
    "damage", ["changed", "longer", "gone", "receipt cut", "receipt no object", "receipt empty", "no files"]
)
def test_what_is_damaged_is_made_again(store: DirectoryStore, tmp_path: Path, damage: str) -> None:
    stored(store, tmp_path, {"a": b"one", "b": b"two"})
    receipt = f"checkpoints/{RUN_ID}/done/a.json"
    changes = {
        "changed": lambda: store.write("gguf/a", b"eno"),
        "longer": lambda: store.write("gguf/a", b"one more"),
        "gone": lambda: store.delete("gguf/a"),
        "receipt cut": lambda: store.write(receipt, store.read(receipt)[:-3]),
        "receipt no object": lambda: store.write(receipt, json.dumps([1]).encode()),
        "receipt empty": lambda: store.write(receipt, b""),
        "no files": lambda: store.write(receipt, json.dumps({"files": [], "facts": FACTS}).encode()),
    }
    changes[damage]()
    log = Silent()
    assert Receipts(store, RUN_ID, log).names() == ["b"]
    assert log.logged[0]["name"] == "a"


def test_receipts_go_and_their_files_stay(store: DirectoryStore, tmp_path: Path) -> None:
    receipts = stored(store, tmp_path, {"a": b"one", "b": b"two"})
    receipts.clear()
    assert [item.key for item in store.list()] == ["gguf/a", "gguf/b"]
    assert Receipts(store, RUN_ID, Silent()).names() == []


def test_what_was_found_out_or_decided_needs_no_files(store: DirectoryStore) -> None:
    for name in WITHOUT_FILES:
        Receipts(store, RUN_ID, Silent()).add(name, [], FACTS)
    again = Receipts(store, RUN_ID, Silent())
    assert again.names() == sorted(WITHOUT_FILES)
    assert all(again[name].facts == FACTS for name in WITHOUT_FILES)
