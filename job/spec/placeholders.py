"""`{name}` and `{run_id}` in the addresses of the output.

The run id is the digest of the resolved spec without `output` and `resources`. So it is known before the address is,
it is the same on every machine and in every try, and another name gives another id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from job.errors import Fault
from job.spec.identity import run_id_of
from job.spec.wording import show

Json = dict[str, Any]

PLACEHOLDERS = ("{name}", "{run_id}")
BRACES = re.compile(r"\{[^{}]*\}|[{}]")
HINT = "Both stay the same in every try of a spec, as a date would not: a rerun finds what is stored"


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
