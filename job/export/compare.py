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
from job.export.logits import (
    Comparison,
    compare,
    comparison_dtype,
    continue_greedily,
    logits_of,
    logits_on_disk,
    open_adapted,
    open_model,
    perplexity,
    vocabulary,
    write_logits,
)
from job.host.child import serve
from job.training.precision import MERGED_SLACK, compute_dtype, name_of
from job.weights.layout import fill, lay_out, reserve

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

    The request's keys: `base`, `adapter` (folders; both None where every weight was trained, then the file `probe`
    may hold `input_ids` and `logits` of the trained model), `merged`, `merged_4bit` (folder or None), `rows` and
    `calibration` (token ids), `prompt`, `stop_token_ids`, `max_new_tokens`, `device`, `reference`, `imatrix` (path or
    None), `limits`. Raises `GateError` with figure and limit where an export is not the trained model.
    """
    reference = Path(request["reference"])
    scratch = reference.with_suffix(".scratch")
    clock = Clock()
    dtype = comparison_dtype(Path(request["merged"]), request["device"])
    try:
        with clock("trained"):
            rows, trained = trained_logits(request, dtype, scratch)
        merged, logits = examine_merged(request, rows, trained, dtype, clock)
        del trained  # its file is written anew
        four_bit = None
        if request["merged_4bit"] is not None:
            with clock("merged_4bit"):
                four_bit = examine_four_bit(request, logits, scratch)
    finally:
        for path in (scratch, unproven(reference)):
            path.unlink(missing_ok=True)
    return {**merged, "merged_4bit": four_bit, "dtype": name_of(dtype), "seconds": clock.seconds}


def trained_logits(request: Json, dtype: Any, scratch: Path) -> tuple[list[list[int]], Any]:
    """The rows to compare on, and the logits of what was trained: base and adapter, the trainer's own probe, or
    nothing.
    """
    if request["base"] is None and request["probe"] is None:
        return [], None
    if request["base"] is None:
        from safetensors.numpy import load_file

        probe = load_file(request["probe"])
        return [probe["input_ids"][0].tolist()], probe["logits"]
    model = open_adapted(Path(request["base"]), Path(request["adapter"]), dtype, request["device"])
    return request["rows"], logits_on_disk(model, request["rows"], scratch)


def unproven(reference: Path) -> Path:
    """Where the reference lies until the comparison has passed."""
    return reference.with_suffix(".part")


def examine_merged(request: Json, rows: list[list[int]], trained: Any, dtype: Any, clock: Clock) -> tuple[Json, Any]:
    """Compares the merged model with the `trained` logits of `rows`; returns figures and its logits of the request's
    rows.

    Writes `reference` when it has passed, then `imatrix`.
    """
    merged, reference = Path(request["merged"]), Path(request["reference"])
    part = unproven(reference)
    with clock("merged"):
        model = open_model(merged, dtype, request["device"])
        answer, stopped = continue_greedily(
            model, request["prompt"], request["stop_token_ids"], request["max_new_tokens"]
        )
        logits = write_reference(model, request, answer, stopped, part)
        comparison = (
            None if trained is None else compare(trained, logits if rows is request["rows"] else logits_of(model, rows))
        )
        if comparison is not None:
            check(comparison, merged.name, "the trained model", merged_limits(request, dtype))
        part.replace(reference)
    if request["imatrix"] is not None:
        with clock("imatrix"):
            write_imatrix(model, merged, request["calibration"], Path(request["imatrix"]))
    figures = {"perplexity": perplexity(logits, request["rows"]), "stopped": stopped, "answer_tokens": len(answer)}
    return figures | {"merged": comparison and asdict(comparison)}, logits


def merged_limits(request: Json, dtype: Any) -> dict[str, float]:
    """The limits of KL divergence and logits; these are wider where either side was computed in half precision."""
    # The training's own probe
    computed = [dtype] if request["base"] is not None else [dtype, compute_dtype(request["device"])]
    slack = max(MERGED_SLACK[name_of(kind)] for kind in computed)
    return {"kl": request["limits"]["max_kl"], "logits": request["limits"]["max_logit_ratio"] * slack}


def write_reference(model: Any, request: Json, answer: list[int], stopped: bool, path: Path) -> Any:
    """Writes what other exports are compared with; returns the logits, fp32 (tokens, vocabulary), which stay in that
    file.
    """
    import numpy

    rows = request["rows"]
    lists = {"input_ids": [token for row in rows for token in row], "row_lengths": [len(row) for row in rows],
             "prompt_ids": request["prompt"], "answer_ids": answer}  # fmt: skip
    shape = (len(lists["input_ids"]), vocabulary(model))
    forms: list[tuple[str, str, tuple[int, ...], int]] = [("logits", "F32", shape, 4 * shape[0] * shape[1])]
    forms += [(name, "I32", (len(values),), 4 * len(values)) for name, values in lists.items()]
    placed = {tensor.name: tensor for tensor in lay_out(path, forms, {"stopped": "true" if stopped else "false"})}
    reserve(path, path.stat().st_size)
    for name, values in lists.items():
        fill(placed[name], [numpy.array(values, numpy.int32)])
    logits = numpy.memmap(path, dtype=numpy.float32, mode="r+", offset=placed["logits"].start, shape=shape)
    write_logits(model, rows, logits)
    logits.flush()
    return logits


def examine_four_bit(request: Json, logits: Any, scratch: Path) -> Json:
    """Figures of the 4-bit model against the merged one's `logits`. Raises `GateError` if it is not 4-bit or too far
    away.
    """
    folder, rows = Path(request["merged_4bit"]), request["rows"]
    model = open_model(folder, "auto", request["device"])
    require_four_bit(model, folder.name)
    found = logits_on_disk(model, rows, scratch)
    comparison = compare(logits, found)
    check(comparison, folder.name, "the 16-bit merge", {"kl": request["limits"]["max_kl_4bit"]})
    return asdict(comparison) | {"perplexity": perplexity(found, rows)}


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
