"""A folder that goes with whoever made it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job.errors import Interrupted
from job.host.signals import deferred


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Gone at the end, also where a stop comes while it is being made, when nobody would know of it yet, or removed."""
    made = None
    try:
        with deferred():
            made = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
        yield Path(made.name)
    finally:
        if made:
            try:
                made.cleanup()
            except Interrupted:  # a second stop would end the process at once
                made.cleanup()
                raise
