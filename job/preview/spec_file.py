"""The bytes of a spec, wherever it lies."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from job.errors import SpecError

BEGIN = "tunejob init FILE -o spec.json writes one for your rows"


def read_spec(source: str) -> bytes:
    """The bytes of a spec, no more of a local one than may be. Raises `SpecError` if they cannot be read locally."""
    from job.spec.strict import MAX_BYTES

    if source == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    if source.startswith("s3://"):
        from job.store import open_store

        prefix, _, key = source.rpartition("/")
        return open_store(prefix).read(key)
    try:
        with Path(source).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = _meant(Path(source)) if isinstance(error, FileNotFoundError) else ""
        raise SpecError(f"the spec cannot be read: {error.strerror}", found=source, hint=hint) from None


def _meant(path: Path) -> str:
    """A spec of a near name beside it, else how to come by one."""
    names = [other.name for other in path.parent.glob("*.json")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1, 0.5)
    return f"Did you mean {path.parent / near[0]}?" if near else BEGIN
