"""What a run has left, looked up by its manifest: the files of one artefact, here and unchanged. Where it has not
finished, by its receipts: what is trained is stored, whatever comes after, a gate that says no among it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from job.errors import GateError, InputError
from job.gguf.types import TYPES
from job.ledger.evidence import failure_message, instead
from job.ledger.manifest import MANIFEST, SPEC, File, Manifest, read_manifest
from job.ledger.receipts import TRAINED, receipts_of
from job.spec import JobSpec, parse_spec
from job.store import Store, open_store
from job.store.base import sha256_of, within
from job.store.directory import DirectoryStore

STATISTICS = "stats.json"
ADAPTER, MERGED = "adapter", "merged"


@dataclass(frozen=True)
class Published:
    """A run at its output. `unfinished`: why it has no manifest, whose place is taken by what is known; empty for a
    finished one.
    """

    store: Store
    manifest: Manifest
    spec: JobSpec
    stop_token_ids: list[int]
    unfinished: str = ""

    @property
    def is_chat(self) -> bool:
        """Whether it was trained on conversations, by a chat template."""
        return self.manifest.chat_template_sha256 != hashlib.sha256(b"").hexdigest()

    @property
    def base_source(self) -> str:
        """The base that was trained. One at a relative path that is not there is looked for from where the run was
        started, as long as the output is still there.
        """
        source, output = self.spec.model.source, os.path.normpath(self.spec.output.uri)
        if "://" in source or Path(source).expanduser().exists() or not isinstance(self.store, DirectoryStore):
            return source
        place, inside = Path(self.store.uri).resolve(), Path(output)
        if inside.is_absolute() or place.parts[-len(inside.parts) :] != inside.parts:
            return source
        beside = place.parents[len(inside.parts) - 1] / source
        return str(beside) if beside.exists() else source

    def files(self, folder: str) -> list[File]:
        return [file for file in self.manifest.files if within(file.key, folder)]

    def gguf(self, asked: str) -> list[File]:
        """The files of the GGUF of type `asked`, "" for the first that the spec names: one, or the parts of it.

        Raises `InputError` where there is none.
        """
        made = {name: files for name in self.spec.export.gguf if (files := self._gguf_files(name))}
        if not asked and made:
            return next(iter(made.values()))
        if asked not in made:
            hint = "" if made else "A run makes them where its spec has export.gguf"
            found = asked or "none"
            raise InputError(
                "the run has no such GGUF", where="--gguf", found=found, expected=" or ".join(made), hint=hint
            )
        return made[asked]

    def _gguf_files(self, name: str) -> list[File]:
        stem = f"gguf/{self.spec.name}-{TYPES[name].label}"
        return [f for f in self.files("gguf") if f.key == f"{stem}.gguf" or f.key.startswith(f"{stem}-0")]

    def fetch(self, files: Sequence[File], scratch: Path, hashed: bool = False) -> Path:
        """The folder that has `files` under their keys: the output itself where that is a directory of this machine,
        looked at by size alone unless it is to be `hashed`: that takes as long as loading it, and is `verify`'s; else
        `scratch`. Raises `GateError` for what is not what was published.
        """
        if isinstance(self.store, DirectoryStore):
            for file in files:
                _require(file, self.store.uri, Path(self.store.uri, file.key), hashed)
            return Path(self.store.uri)
        for file in files:
            path = scratch / file.key
            if not _is_it(file, path, hashed=True):  # fetched by a chat before
                self.store.download(file.key, path)
            _require(file, self.store.uri, path, hashed=True)
        return scratch


def open_published(output: str) -> Published:
    """The run at `output`. Raises `InputError` where none has finished, `GateError` where its documents are damaged."""
    store = open_store(output)
    try:
        manifest = read_manifest(store)
    except InputError as error:
        raise _not_finished(store) from error
    documents = {file.key: file for file in manifest.files}
    spec, stats = (_document(store, documents[key]) for key in (SPEC, STATISTICS))
    return Published(store, manifest, parse_spec(spec), _stop_token_ids(stats))


def open_trained(output: str) -> Published:
    """The same; of a run that has not finished what it has trained and stored, if it has come so far."""
    store = open_store(output)
    stored = [item.key for item in store.list()]
    if MANIFEST in stored:
        return open_published(output)
    spec = parse_spec(store.read(SPEC)) if SPEC in stored else None
    receipts = receipts_of(store, spec.run_id, stored) if spec else {}
    if spec is None or TRAINED not in receipts:
        raise _not_finished(store)
    facts = receipts[TRAINED].facts
    manifest = Manifest(
        run_id=spec.run_id,
        name=spec.name,
        base={"source": spec.model.source, "revision": facts.get("revision")},
        data=[],
        chat_template_sha256=facts.get("chat_template_sha256"),
        packages={},
        results={},
        files=[file for receipt in receipts.values() for file in receipt.files],
    )
    why = failure_message(store) or "it was not carried through, or is at work still"
    return Published(store, manifest, spec, _stop_token_ids(json.dumps(facts).encode()), why)


def _not_finished(store: Store) -> InputError:
    found, hint = instead(store, [item.key for item in store.list()])
    return InputError("no finished run", where=f"{store.uri}/{MANIFEST}", found=found, hint=hint)


def _stop_token_ids(stats: bytes) -> list[int]:
    """Of the answers that the run has learned. Raises `GateError` for statistics that no run writes."""
    try:
        found = json.loads(stats)["data"]["stop_token_ids"]
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(type(token) is int for token in found):
        raise GateError(
            "it does not say which tokens end an answer", where=STATISTICS, expected="the statistics of a run"
        )
    return found


def _document(store: Store, file: File) -> bytes:
    data = store.read(file.key)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _changed(file, store.uri)
    return data


def _require(file: File, uri: str, path: Path, hashed: bool) -> None:
    if not _is_it(file, path, hashed):
        raise _changed(file, uri)


def _is_it(file: File, path: Path, hashed: bool) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return not hashed or sha256_of(path) == file.sha256


def _changed(file: File, uri: str) -> GateError:
    return GateError(
        "this file is not the one that was published",
        where=file.key,
        expected=f"{file.bytes} bytes, sha256 {file.sha256}",
        hint=f"tunejob verify {uri} names every damaged file",
    )
