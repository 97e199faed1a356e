"""The scratch directory: where one run works, and nobody else."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from job.errors import CapacityError, InputError, classify
from job.plan.require import require_apart
from job.spec import JobSpec

WORKDIR_VARIABLE = "TUNEJOB_WORKDIR"


def make_scratch(kept: str | None, spec: JobSpec) -> Path:
    """An empty directory: `kept`/RUN_ID, or a temporary one.

    Raises `InputError` where none can be made, as below a read-only root, or where it would lie in or around the
    output.
    """
    try:
        workdir = Path(kept).resolve() / spec.run_id if kept else Path(tempfile.mkdtemp(prefix="tunejob-"))
        require_apart(workdir, spec.output.uri)
        if kept:
            shutil.rmtree(workdir, ignore_errors=True)
            workdir.mkdir(parents=True)
    except OSError as error:
        failure = classify(error)
        if isinstance(failure, CapacityError):
            raise failure from error
        what = f"no scratch directory can be made: {error.strerror or error}"
        hint = "In a pod with a read-only root mount an emptyDir there"
        expected = "a directory that can be written"
        raise InputError(
            what, where=WORKDIR_VARIABLE, found=ascii(kept or "unset"), expected=expected, hint=hint
        ) from error
    return workdir
