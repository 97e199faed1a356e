"""The process in which GGUF files are made and checked: native code can crash, and its memory goes with it.

    python -m job.gguf.worker REQUEST_JSON RESULT_JSON

The request `{"steps": [{"operation": …, …}, …]}` is answered with `{"steps": [figures, …]}`; paths are absolute.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job.host.child import serve

Step = dict[str, Any]


def handle(request: Step) -> Step:
    """Runs the steps in order. Raises the first one's `JobError`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Threads that wait for each other sleep instead of spinning: on cores shared with others that is ten times faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return {"steps": [OPERATIONS[step["operation"]](step) for step in request["steps"]]}


def _convert(step: Step) -> Step:
    from job.gguf.convert import convert

    return convert(Path(step["model"]), Path(step["target"]), step["type"], step["name"], step["threads"])


def _quantise(step: Step) -> Step:
    """On the GPU, if there is one that may be used and the types are among those encoded there: the same bytes, much
    sooner.
    """
    from job.gguf.quantise import planned_types, quantise

    source, target, imatrix = Path(step["source"]), Path(step["target"]), _path(step["imatrix"])
    if step["device"] != "cpu" and imatrix is None:
        from job.gguf.encode import supported
        from job.gguf.gpu_quantise import quantise_on_device

        if supported(planned_types(source, step["type"], False).values()):
            return quantise_on_device(source, target, step["type"], step["device"])
    return quantise(source, target, step["type"], imatrix, step["threads"])


def _check(step: Step) -> Step:
    from job.gguf.check import check, check_lora
    from job.gguf.quality import Asked

    file, key, kind, limits, threads = (
        _first_part(Path(step["file"])), step["key"], step["type"], step["limits"], step["threads"],
    )  # fmt: skip
    reference, trained = Path(step["reference"]), Path(step["trained"])
    asked = Asked(step["questions"], step["max_new_tokens"])
    if step["lora"] is not None:
        return check_lora(file, Path(step["lora"]), key, kind, reference, trained, asked, limits, threads)
    source = _path(step["source"])
    return check(file, key, kind, source, reference, trained, asked, step["expected"], limits, threads)


def _lora(step: Step) -> Step:
    from job.gguf.lora import write_lora

    return write_lora(Path(step["adapter"]), Path(step["model"]), Path(step["target"]), step["type"], step["name"])


def _split(step: Step) -> Step:
    from job.gguf.split import split

    return split(Path(step["file"]), step["max_bytes"])


def _plan(step: Step) -> Step:
    from job.gguf.sizes import plan

    return plan(Path(step["model"]), Path(step["scratch"]), step["types"], step["imatrix"])


def _rehearse(step: Step) -> Step:
    from job.gguf.vocabulary import rehearse

    return rehearse(Path(step["model"]), Path(step["target"]), step["expected"])


def _first_part(file: Path) -> Path:
    """The file, or the first of those that it was split into: it opens the others."""
    return file if file.exists() else min(file.parent.glob(f"{file.stem}-00001-of-*.gguf"), default=file)


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


OPERATIONS: dict[str, Callable[[Step], Step]] = {
    "convert": _convert, "quantise": _quantise, "check": _check, "lora": _lora, "split": _split, "plan": _plan,
    "rehearse": _rehearse,
}  # fmt: skip

if __name__ == "__main__":
    serve(handle)
