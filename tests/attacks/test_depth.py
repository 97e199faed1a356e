"""Attack: what is stored or comes with a model nests without end, or holds a regex that never ends: never exit 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from job.data.worker.messages import RowFault
from job.data.worker.tokenise import Tokeniser
from job.errors import GateError, InputError, classify
from job.ledger.claim import examine
from job.ledger.manifest import MANIFEST, SPEC, verify
from job.ledger.receipts import Receipts
from job.store import DirectoryStore
from tests.specs import parse

BRACKETS = b"[" * 1_000_000 + b"]" * 1_000_000


def test_a_stored_spec_of_brackets(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.write(SPEC, BRACKETS)
    with pytest.raises(InputError, match=r"a spec\.json that cannot be read"):
        examine(store, parse({}))


def test_a_stored_manifest_of_brackets(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.write(MANIFEST, BRACKETS)
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        examine(store, parse({}))
    with pytest.raises(GateError, match=r"manifest\.json is damaged"):
        verify(store)


def test_a_receipt_of_brackets_counts_as_none(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    receipts = Receipts(store, "0" * 16, lambda *_, **__: None)
    receipts.add("trained", [], {})
    (written,) = tmp_path.rglob("trained.json")
    written.write_bytes(BRACKETS)
    assert "trained" not in Receipts(store, "0" * 16, lambda *_, **__: None)


def test_unexpected_depth_is_not_tried_again() -> None:
    with pytest.raises(RecursionError) as deep:
        json.loads(BRACKETS)
    assert classify(deep.value).exit_code == 11


def test_a_regex_of_the_tokenizer_that_never_ends() -> None:
    """The library gives it up with a panic, which is not an Exception and ended the worker."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    rust = Tokenizer(models.BPE({"a": 0, "!": 1}, []))
    rust.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    tokeniser = Tokeniser(rust, 512, [], None)
    assert list(tokeniser.encode("aaa").ids) == [0, 0, 0]
    with pytest.raises(RowFault, match="the tokenizer breaks on this text"):
        tokeniser.encode("a" * 40 + "!")
