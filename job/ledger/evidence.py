"""What a failed run leaves to be read: `stats.json`, which lists what of the report was stored with it. It claims
nothing, and the next run replaces it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import Any

from job.errors import InputError, PolicyError
from job.host.log import Log
from job.ledger.lease import KEY as LEASE
from job.ledger.leftovers import discard
from job.ledger.manifest import CHECKPOINTS, SPEC
from job.store import Store, safe_key
from job.store.base import is_there, within

STATS, REPORT = "stats.json", "report"
RUN_ID = re.compile(r"[0-9a-f]{16}")
TRIAL = re.compile(rf"{CHECKPOINTS}/{RUN_ID.pattern}/rights")  # left where nothing may be deleted


def json_object(raw: bytes) -> dict[str, Any]:
    """What was stored as a JSON object; empty for anything else, which others may have put there."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def failure_report(store: Store) -> list[str]:
    """Keys that a failed run has left to be read, `stats.json` last; none where that is not a failed run's."""
    document = _failed(store)
    listed = document.get("report", [])
    if not document or not isinstance(listed, list):
        return []
    return [*sorted({key for key in listed if _of_a_report(key)}), STATS]


def require_result(store: Store, key: str) -> None:
    """Raises `InputError`, which says what is there instead, unless a run has come so far as to store `key`."""
    keys = {item.key for item in store.list()}
    if key not in keys:
        found, hint = instead(store, keys)
        place = f"{store.uri}/{key}"
        raise InputError("there is no such result", where=place, found=found, expected=f"a run's {key}", hint=hint)


def instead(store: Store, keys: Collection[str]) -> tuple[str, str]:
    """What is there in the place of a result, and what to do about it; `keys`: every one of the store."""
    if message := failure_message(store):
        return f"a run that failed: {message}", "stats.json has the whole failure; mend it, then run the spec again"
    if SPEC in keys:
        return "a run that has not come so far", "Run its spec again: it goes on where it was lost"
    if keys:
        return f"{min(keys)}, which no run has stored", "Give the output.uri of a run"
    return "nothing", "Check the address; tunejob validate SPEC prints that of a spec"


def failure_message(store: Store) -> str:
    """What the run that is there has failed of; empty where it has not failed."""
    failure = _failed(store).get("failure")
    return str(failure.get("message")) if isinstance(failure, dict) else ""


def _failed(store: Store) -> dict[str, Any]:
    """The statistics of a failed run, if that is what is there; empty otherwise."""
    if not is_there(store, STATS):
        return {}
    document = json_object(store.read(STATS))
    ours = document.get("status") == "failed" and RUN_ID.fullmatch(str(document.get("run_id")))
    return document if ours else {}


def unclaimed(store: Store, keys: Iterable[str]) -> list[str]:
    """Of `keys`, sorted, those that are not a lease, the trial of rights or the report of a failure."""
    report = failure_report(store)
    return sorted(key for key in keys if key != LEASE and key not in report and not TRIAL.fullmatch(key))


def _of_a_report(key: Any) -> bool:
    try:
        return isinstance(key, str) and key != REPORT and within(safe_key(key), REPORT)
    except PolicyError:
        return False


def forget_failure(store: Store, log: Log, kept: Collection[str] = ()) -> None:
    """Removes what an earlier failure has left, all but `kept`."""
    discard(store, [key for key in failure_report(store) if key not in kept], log)
