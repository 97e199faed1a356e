"""Which run a spec is, and `{name}` and `{run_id}` in the addresses of the output.

The run id is the digest of the resolved spec without `output` and `resources`. So it is known before the address is,
it is the same on every machine and in every try, and another name gives another id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from job.errors import Fault
from job.spec.wording import show

Json = dict[str, Any]

NOT_THE_WORK = ("output", "resources", "$schema")  # where it goes and what it costs is not part of a run's identity
PLACEHOLDERS = ("{name}", "{run_id}")
BRACES = re.compile(r"\{[^{}]*\}|[{}]")
HINT = "Both stay the same in every try of a spec, as a date would not: a rerun finds what is stored"


def run_id_of(resolved: Json) -> str:
    """First 16 hex digits of the SHA-256 of the resolved spec without what is not the work: the same work, the same id.

    `data.held_out` does not count where it is false, nor `training.method` where it is sft, nor
    `training.grpo.use_vllm` where it is false: before there was a default, or another way, that was meant where they
    were left out.
    """
    work = {key: value for key, value in resolved.items() if key not in NOT_THE_WORK}
    data = work.get("data")
    if isinstance(data, dict):
        work["data"] = _without(data, "held_out", False)
    training = work.get("training")
    if isinstance(training, dict):
        work["training"] = _without(training, "method", "sft")
        if isinstance(grpo := training.get("grpo"), dict):
            work["training"]["grpo"] = _without(grpo, "use_vllm", False)
    text = json.dumps(work, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without(part: Json, key: str, value: Any) -> Json:
    """`part`, but for that key where it has that value."""
    return {name: found for name, found in part.items() if (name, found) != (key, value)}


def placeholder_faults(uri: str, pointer: str) -> Iterator[Fault]:
    """Every brace in `uri` that is not one of a placeholder."""
    for found in dict.fromkeys(BRACES.findall(uri)):
        if found not in PLACEHOLDERS:
            yield Fault(
                "not a placeholder of an address",
                where=pointer,
                found=show(found),
                expected=" or ".join(PLACEHOLDERS),
                hint=HINT,
            )


def expanded(resolved: Json) -> Json:
    """`resolved`, its placeholders replaced: what is stored, logged and printed names the place itself."""
    output: Json = resolved["output"]
    for part in (output, output["checkpoints"]):
        if "uri" in part:
            named = part["uri"].replace("{name}", resolved["name"])
            part["uri"] = named.replace("{run_id}", run_id_of(resolved))
    return resolved
