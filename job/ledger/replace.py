"""`--replace`: what runs have stored at an output is deleted, and nothing else.

Only keys that a manifest, a receipt, a checkpoint or a failure report there lists, that are there, and that have the
names which a run gives to its files. `manifest.json` and `spec.json` go last: a replacement that is cut short never
looks finished, and the next one finds the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from job.errors import GateError, InputError, PolicyError
from job.host.log import Log
from job.ledger.evidence import TRIAL, failure_report, json_object
from job.ledger.lease import KEY as LEASE
from job.ledger.lease import Lease
from job.ledger.manifest import CHECKPOINTS, MANIFEST, SPEC, read_manifest
from job.ledger.receipts import listed_files
from job.spec.identity import run_id_of
from job.store import Store

OURS = re.compile(r"(adapter|merged|merged_4bit|gguf|report)/.+|README\.md|stats\.json|spec\.json")
OF_A_RUN = re.compile(r"done/[^/]+\.json|step-\d{8}/[^/]+")
SPEC_KEYS = {"version", "name", "model", "data", "output"}
SHOWN = 5


@dataclass(frozen=True)
class Replacement:
    """What is deleted, in this order, and what is left alone; `owners` are the runs that stored it."""

    owners: tuple[str, ...]
    created: str
    keys: tuple[str, ...]
    bytes: int
    kept: tuple[str, ...]

    def question(self, uri: str) -> str:
        """What is asked on a terminal."""
        what = f"{len(self.keys)} objects ({self.bytes} bytes) of run {', '.join(self.owners)} at {uri}"
        return f"--replace deletes {what}; {self.left_alone()}. Delete them? Type yes: "

    def left_alone(self) -> str:
        """What stays. Files that nothing lists, with the names of a run's, may be anybody's; mostly a lost try's."""
        unlisted = [key for key in self.kept if OURS.fullmatch(key)]
        others = [key for key in self.kept if key not in unlisted]
        said = [f"left alone: {_first(others)}"] if others else []
        if unlisted:
            said.append(
                f"left alone, as nothing lists them: {_first(unlisted)}; a try that was cut short may have stored "
                "them, and then you may remove them"
            )
        return "; ".join(said) or "nothing else is there"


def _first(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{', '.join(keys[:SHOWN])}{more}"


def plan_replacement(store: Store) -> Replacement:
    """What would be deleted now. Raises `InputError` where something is there and no run has stored any of it."""
    sizes = {item.key: item.bytes for item in store.list() if item.key != LEASE and not TRIAL.fullmatch(item.key)}
    owners, created, listed = _listed(store, sizes)
    report = failure_report(store)
    doomed = [key for key in dict.fromkeys([*listed, *report]) if key in sizes and OURS.fullmatch(key)]
    doomed += [key for key in sizes if _of_runs(key, owners)]
    last = [key for key in (MANIFEST, SPEC) if key in sizes and owners]
    keys = [*(key for key in doomed if key not in last), *last]
    if not owners and (sizes.keys() & {MANIFEST, SPEC} or (not keys and sizes)):
        raise InputError(
            f"{store.uri}: no run has stored what is there; nothing is deleted",
            where="/output/uri",
            found=min(sizes),
            expected=f"a {MANIFEST} or {SPEC} of a run",
            hint="Choose another output.uri, or empty this one yourself",
        )
    kept = tuple(sorted(sizes.keys() - set(keys)))
    return Replacement(tuple(owners), created, tuple(keys), sum(sizes[key] for key in keys), kept)


def carry_out(planned: Replacement, store: Store, lease: Lease, log: Log) -> None:
    """Deletes what was planned. Raises `InputError` if other things are there by now, or if deleting is not allowed."""
    lease.require()
    if plan_replacement(store) != planned:
        raise InputError(
            "the output has changed since --replace looked at it; nothing is deleted",
            where="/output/uri",
            found=store.uri,
            hint="Run it again if what is there now is to be replaced",
        )
    for key in planned.keys:
        store.delete(key)
    if planned.keys or planned.kept:
        log("replaced", objects=len(planned.keys), bytes=planned.bytes, runs=planned.owners, note=planned.left_alone())


def _listed(store: Store, sizes: Mapping[str, int]) -> tuple[list[str], str, list[str]]:
    """The runs that an intact manifest and a spec there name, when the manifest was written, and the keys that manifest
    and receipts list. A damaged manifest lists nothing.
    """
    owners, created, listed = [], "", []
    if MANIFEST in sizes:
        try:
            manifest = read_manifest(store)
        except (GateError, PolicyError):
            pass
        else:
            owners, created = [manifest.run_id], manifest.created
            listed += [file.key for file in manifest.files]
    spec = json_object(store.read(SPEC)) if SPEC in sizes else {}
    if spec.keys() >= SPEC_KEYS and run_id_of(spec) not in owners:
        owners.append(run_id_of(spec))
    for owner in owners:
        listed += [file.key for file in listed_files(store, owner, sizes)]
    return owners, created, listed


def _of_runs(key: str, owners: list[str]) -> bool:
    """Whether it is a receipt or a part of a checkpoint of one of these runs."""
    folder, _, rest = key.removeprefix(f"{CHECKPOINTS}/").partition("/")
    return key.startswith(f"{CHECKPOINTS}/") and folder in owners and OF_A_RUN.fullmatch(rest) is not None
