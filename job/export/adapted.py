"""The adapter beside its original 16-bit base: what merging onto that base, or the adapter on it elsewhere, will say.

python -m job.export.adapted REQUEST_JSON RESULT_JSON
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from job.export.logits import comparison_dtype, open_adapted
from job.export.reference_logits import Measure, logits_in, measured, write_reference
from job.gguf.quality import ModelStep
from job.host.child import serve


@dataclass(frozen=True)
class AdaptedRequest:
    """The folders of base and adapter; the files of what the `trained` model says, and to write (`adapted`), with
    an answer where something will be `held_to_it` that has to end its own, too.
    """

    measure: Measure
    base: Path
    adapter: Path
    device: str
    trained: Path
    adapted: Path
    held_to_it: bool


def handle(request: AdaptedRequest) -> ModelStep:
    """Its loss, and its distance from the trained model, on the compared rows."""
    trained, _ = logits_in(request.trained)
    dtype = comparison_dtype(request.base, request.device)
    model = open_adapted(request.base, request.adapter, dtype, request.device)
    part = request.adapted.with_suffix(".part")
    logits, _ = write_reference(model, request.measure, part, answered=request.held_to_it)
    part.replace(request.adapted)
    return measured(logits, request.measure, trained)


if __name__ == "__main__":
    serve(handle)
