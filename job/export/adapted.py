"""The adapter beside its original 16-bit base: what merging onto that base, or the adapter on it elsewhere, will say.

python -m job.export.adapted REQUEST_JSON RESULT_JSON
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from job.export.logits import comparison_dtype, open_adapted
from job.export.reference import logits_in, measured, write_reference
from job.host.child import serve


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Its loss, and its distance from the trained model, on the compared rows; writes the file `adapted`.

    The request's keys: `base`, `adapter` (folders), `device`, `trained` (file), `adapted` (the file to write), and
    those of `write_reference`.
    """
    base, path = Path(request["base"]), Path(request["adapted"])
    trained, _ = logits_in(Path(request["trained"]))
    dtype = comparison_dtype(base, request["device"])
    model = open_adapted(base, Path(request["adapter"]), dtype, request["device"])
    part = path.with_suffix(".part")
    logits, _ = write_reference(model, request, part)
    part.replace(path)
    return measured(logits, request, trained)


if __name__ == "__main__":
    serve(handle)
