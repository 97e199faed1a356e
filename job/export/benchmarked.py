"""Benchmarks of the merged weights, opened as others will load them, in a process without the training engine.

    python -m job.export.benchmarked REQUEST_JSON RESULT_JSON

The documents are those that base and trained model have had: nothing is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from job.evaluation.benchmarks import Brought, load_brought, run_benchmarks
from job.evaluation.scores import figures
from job.export.artefacts import Artefacts
from job.export.logits import comparison_dtype, open_model
from job.export.tokenizer import open_tokenizer
from job.host.child import run_child, serve


@dataclass(frozen=True)
class BenchmarkRequest:
    """The folder of the merge, and benchmarks with their documents below `documents`."""

    merged: Path
    benchmarks: tuple[Brought, ...]
    documents: Path
    max_new_tokens: int
    batch_rows: int
    device: str


@dataclass(frozen=True)
class Benchmarked:
    figures: dict[str, float]


def handle(request: BenchmarkRequest) -> Benchmarked:
    """Raises `GateError` where a weight is missing, `InputError` where a task and its rows do not fit."""
    loaded = load_brought(request.benchmarks, request.documents, request.max_new_tokens)
    tokenizer = open_tokenizer(request.merged)
    model = open_model(request.merged, comparison_dtype(request.merged, request.device), request.device)
    rows = run_benchmarks(loaded, model, tokenizer, request.batch_rows, lambda _: None)
    return Benchmarked(figures(rows))


def of_merged(artefacts: Artefacts, folder: Path, device: str) -> dict[str, float]:
    """Figures of the benchmarks that the spec wants of the merged weights, too, where these are still to be stored."""
    run = artefacts.run
    wanted = tuple(one.brought() for one in artefacts.benchmarks if one.spec.merged)
    if not wanted or "merged" not in artefacts.outstanding:
        return {}
    most, batch_rows = run.spec.evaluation.max_new_tokens, run.spec.training.eval_batch_size
    asked = BenchmarkRequest(folder, wanted, run.workdir / "benchmarks", most, batch_rows, device)
    with run.log.live("benchmarks of the merged weights"):
        what = "benchmarks of the merged weights"
        found = run_child("job.export.benchmarked", asked, run.children, what, answer=Benchmarked)
    return found.figures


if __name__ == "__main__":
    serve(handle)
