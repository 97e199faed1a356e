"""The facts of a failure, as short as a termination message must be (schemas/failure.schema.json)."""

from __future__ import annotations

from typing import Any

from job.errors import JobError

MESSAGE_CHARACTERS = 320  # keeps the termination message below 1,024 bytes
FIELD_CHARACTERS = 96


def failure_facts(error: JobError, stage: str, run_id: str = "") -> dict[str, Any]:
    """The termination message (schemas/failure.schema.json): at most 1,024 bytes as JSON."""
    first = error.faults[0] if error.faults else None
    facts: dict[str, Any] = {
        "class": type(error).__name__,
        "exit_code": error.exit_code,
        "retryable": error.retryable,
        "stage": stage,
        "run_id": run_id,
        "faults": len(error.faults),
        "message": _short(first.message if first else str(error), MESSAGE_CHARACTERS),
    }
    if first:
        fields = {"pointer": first.pointer, "found": first.found, "expected": first.expected, "hint": first.hint}
        facts |= {key: _short(value, FIELD_CHARACTERS) for key, value in fields.items() if value}
    return facts


def _short(text: str, characters: int) -> str:
    flat = " ".join(text.split()).encode("ascii", "replace").decode()  # one byte a character
    return flat if len(flat) <= characters else flat[: characters - 3] + "..."
