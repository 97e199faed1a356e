"""The merge reopened by plain transformers and compared with what was trained; then the reference of all other exports.

    python -m job.export.compare REQUEST_JSON RESULT_JSON

Nothing of Unsloth runs here: what is measured is what others will load. One model is in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from job.errors import Fault, GateError
from job.export.gguf.imatrix import write_imatrix
from job.export.logits import Comparison, compare, comparison_dtype, logits_on_disk, open_model, perplexity
from job.export.reference_logits import Measure, answers, logits_in, measured, read, write_reference
from job.gguf.quality import ModelStep
from job.host.child import serve
from job.training.precision import MERGED_SLACK, name_of


@dataclass(frozen=True)
class ReopenedForm:
    """Another form of the merge: its name and folder, the module whose `reopen` opens it, and how far it may stray."""

    name: str
    folder: Path
    module: str
    max_kl: float


@dataclass(frozen=True)
class CompareRequest:
    """The folder of the merge and its other forms. Files: of what the merge must say (`against`, None for weights that
    are stored already), of what the trained model says (`trained`), and to write (`reference`, and `imatrix`, None
    for none, measured on `calibration`, token ids). The limits are those of the merge.
    """

    measure: Measure
    merged: Path
    forms: tuple[ReopenedForm, ...]
    against: Path | None
    trained: Path
    calibration: list[list[int]]
    device: str
    reference: Path
    imatrix: Path | None
    max_logit_ratio: float
    max_kl: float


@dataclass(frozen=True)
class Examined:
    """A model, by the perplexity of every compared token, its step from the trained model, its answers as token ids,
    the log-probabilities of what it has read, and its `comparison` with what it is made of, None where there was none.
    """

    perplexity: float
    measured: ModelStep
    answers: list[list[int]]
    comparison: Comparison | None
    sums: list[list[float]]


@dataclass(frozen=True)
class CompareReport:
    """The merge, its other forms by name, and whether the merge's answer to the prompt stopped."""

    merged: Examined
    forms: dict[str, Examined]
    stopped: bool


def handle(request: CompareRequest) -> CompareReport:
    """Compares, writes `reference` and, where asked, `imatrix`. Raises `GateError` with figure and limit where an
    export is not the trained model.
    """
    scratch = request.reference.with_suffix(".scratch")
    unproven = request.reference.with_suffix(".part")
    trained, _ = logits_in(request.trained)
    try:
        merged, stopped, logits = examine_merged(request, trained, unproven)
        forms = {form.name: examine_form(request, form, logits, trained, scratch) for form in request.forms}
    finally:
        for path in (scratch, unproven):
            path.unlink(missing_ok=True)
    return CompareReport(merged, forms, stopped)


def examine_merged(request: CompareRequest, trained: Any, part: Path) -> tuple[Examined, bool, Any]:
    """Compares the merged model with what it must be and with the `trained` one; returns its figures, whether its
    answer stopped, and its logits.

    Writes `part`, which becomes `reference` when it has passed, then `imatrix`.
    """
    merged, measure = request.merged, request.measure
    dtype = comparison_dtype(merged, request.device)
    model = open_model(merged, dtype, request.device)
    asked, sums = answers(model, measure), read(model, measure)
    logits, stopped = write_reference(model, measure, part)
    comparison = None
    if request.against is not None:
        wanted, computed = logits_in(request.against)
        comparison = compare(wanted, logits)
        check(comparison, merged.name, "base and adapter", merged_limits(request, name_of(dtype), computed))
    found = measured(logits, measure, trained)
    part.replace(request.reference)
    if request.imatrix is not None:
        write_imatrix(model, merged, request.calibration, request.imatrix)
    return Examined(perplexity(logits, measure.rows), found, asked, comparison, sums), stopped, logits


def merged_limits(request: CompareRequest, *dtypes: str) -> dict[str, float]:
    """The limits of KL divergence and logits; these are wider where either side was computed in half precision."""
    slack = max(MERGED_SLACK[dtype] for dtype in dtypes)
    return {"kl": request.max_kl, "logits": request.max_logit_ratio * slack}


def examine_form(request: CompareRequest, form: ReopenedForm, logits: Any, trained: Any, scratch: Path) -> Examined:
    """Another form against the merged model's `logits`. Raises `GateError` if it is none or too far away."""
    model = import_module(form.module).reopen(form.folder, request.device)
    asked, sums = answers(model, request.measure), read(model, request.measure)
    found = logits_on_disk(model, request.measure.rows, scratch)
    comparison = compare(logits, found)
    check(comparison, form.folder.name, "the 16-bit merge", {"kl": form.max_kl})
    figures = perplexity(found, request.measure.rows), measured(found, request.measure, trained)
    return Examined(*figures, asked, comparison, sums)


def check(found: Comparison, name: str, other: str, limits: dict[str, float]) -> None:
    """Raises `GateError` naming every figure that is not within its limit, or is not a number."""
    ratio = found.max_logit_difference / found.largest_logit if found.largest_logit else float("inf")
    figures = {
        "kl": ("KL divergence", found.kl),
        "logits": (f"part of the largest logit ({found.largest_logit:.4g})", ratio),
    }
    faults = [
        Fault(
            f"its predictions are not those of {other}: {what}",
            where=name,
            found=f"{figure:.4g}",
            expected=f"at most {limits[key]:g}",
        )
        for key, (what, figure) in figures.items()
        if key in limits and not figure <= limits[key]
    ]
    if faults:
        raise GateError(*faults)


if __name__ == "__main__":
    serve(handle)
