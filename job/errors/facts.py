"""The facts of a failure, as short as a termination message must be (schemas/failure.schema.json)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from job.errors import SHOWN_FAULTS, Interrupted, JobError

MESSAGE_BYTES = 320  # with the fields below: at most 1,024 bytes as JSON in UTF-8, whatever the text
FIELD_BYTES = 96
WHOLE_BYTES = 4096  # of each in a line of the log, which nothing else bounds


def failure_facts(error: JobError, stage: str, run_id: str = "", whole: bool = False) -> dict[str, Any]:
    """What the termination message and stats.json say of a failure, the first fault with every field, and the last log
    line, where nothing of it is cut (`whole`).
    """
    first = error.faults[0] if error.faults else None
    message_bytes, field_bytes = (WHOLE_BYTES, WHOLE_BYTES) if whole else (MESSAGE_BYTES, FIELD_BYTES)
    facts: dict[str, Any] = {
        "class": type(error).__name__,
        "exit_code": error.exit_code,
        "retryable": error.retryable,
        "stage": stage,
        "run_id": run_id,
        "faults": len(error.faults),
        "message": _short(first.message if first else "", message_bytes) or "unknown",
    }
    if first:
        fields = {"pointer": first.where, "found": first.found, "expected": first.expected, "hint": first.hint}
        facts |= {key: _short(value, field_bytes) for key, value in fields.items() if value}
    return facts


def failure_lines(error: JobError, stage: str) -> Iterator[str]:
    """The same for a person at a terminal, once and in full: each fault with its place, the value, and what to do."""
    count = f": {len(error.faults)} faults" if len(error.faults) > 1 else ""
    yield ""
    yield f"failed in {stage}: {type(error).__name__}, exit code {error.exit_code}{count}"
    for fault in error.faults[:SHOWN_FAULTS]:
        yield f"  {fault.where}: {fault.message}" if fault.where else f"  {fault.message}"
        for words, text in (("found", fault.found), ("expected", fault.expected), ("to do", fault.hint)):
            if text:
                yield f"    {words + ':':<10}{text}"
    if len(error.faults) > SHOWN_FAULTS:
        yield f"  and {len(error.faults) - SHOWN_FAULTS} more"
    if error.retryable and not isinstance(error, Interrupted):
        yield "  The same command may succeed when it is tried again."


def _short(text: str, limit_bytes: int) -> str:
    """`text` as printable characters on one line, at most so many bytes as UTF-8 once escaped as JSON."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if _escaped_bytes(flat) <= limit_bytes:
        return flat
    while _escaped_bytes(flat) > limit_bytes - 3:
        flat = flat[: min(len(flat) - 1, limit_bytes)]
    return flat + "..."


def _escaped_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2
