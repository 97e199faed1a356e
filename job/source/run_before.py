"""What the run that has made an adapter had measured of it: what goes on from it is compared with that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.evaluation.metrics import METRICS, metric_of
from job.evaluation.metrics.task import NAME as TASK
from job.ledger.evidence import STATS, json_object
from job.ledger.manifest import Manifest
from job.source.place import Place
from job.store.base import sha256_of

MOST_BYTES = 64 << 20  # of its statistics; those of the largest runs have less than 1 MB
MOST = 1e300  # of a figure; whole numbers without end are none
SPLIT = ("rows", "tokens", "trained_tokens")  # by which held-out rows are recognised


@dataclass(frozen=True)
class RunBefore:
    """`figures` of its trained model, by metric; `held_out`: the numbers of `SPLIT`, where it had such rows."""

    run_id: str
    figures: dict[str, float]
    held_out: dict[str, int] | None


def run_before(origin: Place, made_by: Manifest, folder: Path) -> RunBefore | None:
    """None where it has published no figures. Raises `InputError` for statistics that are not the published ones."""
    listed = {file.key: file for file in made_by.files}.get(STATS)
    if listed is None or listed.bytes > MOST_BYTES:
        return None
    origin.stage([STATS], folder)
    if (found := sha256_of(folder / STATS)) != listed.sha256:
        raise InputError(f"{STATS} is not the file that the run has published", found=f"sha256 {found}",
                         expected=f"sha256 {listed.sha256}", hint="Fetch the whole output again")  # fmt: skip
    document = json_object((folder / STATS).read_bytes())
    figures = {
        name: float(value)
        for name, value in _member(_member(document, "evaluation"), "trained").items()
        if (name in METRICS or TASK.fullmatch(name)) and _is_number(value) and metric_of(name)
    }
    split = _member(_member(document, "data"), "held_out")
    held_out = {name: int(split[name]) for name in SPLIT if type(split.get(name)) is int}
    return RunBefore(made_by.run_id, figures, held_out or None) if figures else None


def _member(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MOST
