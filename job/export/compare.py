"""The merge reopened by plain transformers and compared with what was trained; then the reference of all other exports.

    python -m job.export.compare REQUEST_JSON RESULT_JSON

Nothing of Unsloth runs here: what is measured is what others will load. One model is in memory at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from job.errors import Fault, GateError
from job.export.gguf.imatrix import write_imatrix
from job.export.logits import Comparison, compare, comparison_dtype, logits_on_disk, open_model, perplexity
from job.export.reference import answers, logits_in, measured, write_reference
from job.host.child import serve
from job.training.precision import MERGED_SLACK, name_of

Json = dict[str, Any]


class Clock:
    """Seconds of each part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[part] = round(time.monotonic() - started, 3)


def handle(request: Json) -> Json:
    """Compares, writes `reference` and, where asked, `imatrix`; returns the figures.

    The request's keys: `merged`, `merged_4bit` (folder or None), `against` (file of the logits that the merge must
    have, None for weights that are stored already), `trained` (file of those of the trained model), `calibration`
    (token ids), `device`, `reference`, `imatrix` (path or None), `limits`, and those of `write_reference` and
    `answers`. Raises `GateError` with figure and limit where an export is not the trained model.
    """
    reference = Path(request["reference"])
    scratch = reference.with_suffix(".scratch")
    clock = Clock()
    dtype = comparison_dtype(Path(request["merged"]), request["device"])
    trained, _ = logits_in(Path(request["trained"]))
    try:
        merged, logits = examine_merged(request, trained, dtype, clock)
        four_bit = None
        if request["merged_4bit"] is not None:
            with clock("merged_4bit"):
                four_bit = examine_four_bit(request, logits, trained, scratch)
    finally:
        for path in (scratch, unproven(reference)):
            path.unlink(missing_ok=True)
    return {**merged, "merged_4bit": four_bit, "dtype": name_of(dtype), "seconds": clock.seconds}


def unproven(reference: Path) -> Path:
    """Where the reference lies until the comparison has passed."""
    return reference.with_suffix(".part")


def examine_merged(request: Json, trained: Any, dtype: Any, clock: Clock) -> tuple[Json, Any]:
    """Compares the merged model with what it must be and with the `trained` one; returns figures and its logits.

    Writes `reference` when it has passed, then `imatrix`.
    """
    merged, reference = Path(request["merged"]), Path(request["reference"])
    part = unproven(reference)
    with clock("merged"):
        model = open_model(merged, dtype, request["device"])
        asked = answers(model, request)
        logits, answer = write_reference(model, request, part)
        comparison = None
        if request["against"] is not None:
            wanted, computed = logits_in(Path(request["against"]))
            comparison = compare(wanted, logits)
            check(comparison, merged.name, "base and adapter", merged_limits(request, name_of(dtype), computed))
        found = measured(logits, request, trained)
        part.replace(reference)
    if request["imatrix"] is not None:
        with clock("imatrix"):
            write_imatrix(model, merged, request["calibration"], Path(request["imatrix"]))
    figures = {"perplexity": perplexity(logits, request["rows"]), **answer, "measured": found, "answers": asked}
    return figures | {"merged": comparison and asdict(comparison)}, logits


def merged_limits(request: Json, *dtypes: str) -> dict[str, float]:
    """The limits of KL divergence and logits; these are wider where either side was computed in half precision."""
    slack = max(MERGED_SLACK[dtype] for dtype in dtypes)
    return {"kl": request["limits"]["max_kl"], "logits": request["limits"]["max_logit_ratio"] * slack}


def examine_four_bit(request: Json, logits: Any, trained: Any, scratch: Path) -> Json:
    """Figures of the 4-bit model against the merged one's `logits`. Raises `GateError` if it is not 4-bit or too far
    away.
    """
    folder, rows = Path(request["merged_4bit"]), request["rows"]
    model = open_model(folder, "auto", request["device"])
    require_four_bit(model, folder.name)
    asked = answers(model, request)
    found = logits_on_disk(model, rows, scratch)
    comparison = compare(logits, found)
    check(comparison, folder.name, "the 16-bit merge", {"kl": request["limits"]["max_kl_4bit"]})
    figures = asdict(comparison) | {"perplexity": perplexity(found, rows)}
    return {"figures": figures, "measured": measured(found, request, trained), "answers": asked}


def require_four_bit(model: Any, name: str) -> None:
    """Raises `GateError` unless every linear layer but the output matrix is packed as NF4."""
    from bitsandbytes.nn import Linear4bit
    from torch.nn import Linear

    linear = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    plain = [n for n, m in linear.items() if not isinstance(m, Linear4bit) and m is not model.get_output_embeddings()]
    packed = [n for n, m in linear.items() if isinstance(m, Linear4bit) and m.weight.quant_type == "nf4"]
    if plain or not packed:
        found = f"{len(plain)} layers of {len(linear)} are not, first {plain[0]}" if plain else "no 4-bit layer"
        raise GateError(
            Fault("this model is not in 4-bit", where=name, found=found, expected="every linear layer as NF4")
        )


def check(found: Comparison, name: str, other: str, limits: dict[str, float]) -> None:
    """Raises `GateError` naming every figure that is not within its limit, or is no number."""
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
