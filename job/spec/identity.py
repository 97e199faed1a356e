"""Which run a spec is."""

from __future__ import annotations

import hashlib
import json
from typing import Any

NOT_THE_WORK = ("output", "resources", "$schema")  # where it goes and what it costs is not part of a run's identity


def run_id_of(resolved: dict[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the resolved spec without what is not the work: the same work, the same id.

    `data.held_out` does not count where it is false, nor `training.method` where it is sft: before there was a default,
    or another method, that was meant where they were left out.
    """
    work = {key: value for key, value in resolved.items() if key not in NOT_THE_WORK}
    data = work.get("data")
    if isinstance(data, dict) and data.get("held_out") is False:
        work["data"] = {key: value for key, value in data.items() if key != "held_out"}
    training = work.get("training")
    if isinstance(training, dict) and training.get("method") == "sft":
        work["training"] = {key: value for key, value in training.items() if key != "method"}
    text = json.dumps(work, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
