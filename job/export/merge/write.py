"""Adapter and 16-bit base files to merged files, tensor by tensor: no model is built, no shard is held in memory.

Measured against PEFT's `merge_and_unload` + `save_pretrained`: tests/unit/test_merge.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.export.merge.changes import HEAD, POINTER, Adapter, Change, Copied, MergePlan, plan_merge
from job.export.merge.check import check_merged
from job.export.merge.dequantised import weights_as_trained
from job.export.merge.documents import tied_embeddings, write_documents
from job.host.child import serve
from job.source.model_files import read_object, weight_files
from job.weights.layout import Tensor, fill, lay_out, merging_threads, read_tensors


@dataclass(frozen=True)
class MergeReport:
    """`bytes` of the weights written; `tensors` in all, of which `merged_tensors` differ from the base's."""

    bytes: int
    tensors: int
    merged_tensors: int
    seconds: float
    check_seconds: float


@dataclass(frozen=True)
class TrainedBase:
    """A base whose `packed` modules the training held in 4 bits, in `folder`."""

    folder: Path
    packed: list[str]


@dataclass(frozen=True)
class MergeRequest:
    """The arguments of `merge_adapter`."""

    base: Path
    adapter: Path
    target: Path
    end_ids: list[int]
    device: str
    onto: TrainedBase | None


def merge_adapter(
    base: Path, adapter: Path, target: Path, end_ids: list[int], device: str, onto: TrainedBase | None = None
) -> MergeReport:
    """Writes the model that `adapter` makes of `base` to `target`, a new folder, in the base's types and files, and
    checks it.

    Each tensor is computed on `device` in fp32; with `onto`, from the values that this has. `end_ids` end an answer.
    Tokenizer and chat template are the adapter's. Raises `InputError` for a base that is quantised or not the
    adapter's, `GateError` if what lies in `target` is wrong.
    """
    started = time.monotonic()
    plan = plan_of(base, adapter, device, onto)
    target.mkdir(parents=True)
    write_weights(plan, target, device)
    write_documents(base, adapter, target, end_ids, plan)
    written = time.monotonic()
    check_merged(base, adapter, target, end_ids, plan, device)
    return MergeReport(
        bytes=sum(path.stat().st_size for path in target.glob("*.safetensors")),
        tensors=len(plan.tensors),
        merged_tensors=sum(not isinstance(change, Copied) for _, _, change in plan.tensors),
        seconds=round(written - started, 3),
        check_seconds=round(time.monotonic() - written, 3),
    )


def plan_of(base: Path, adapter: Path, device: str = "cpu", onto: TrainedBase | None = None) -> MergePlan:
    """What becomes of every tensor of `base`. Raises `InputError` where it is quantised or the adapter another's."""
    if "quantization_config" in read_object(base / "config.json"):
        raise InputError(
            "the base is quantised: merging needs its 16-bit weights",
            where=POINTER,
            found="quantization_config in config.json",
            expected="the model's 16-bit weights",
        )
    files = read_base(base)
    placed = {tensor.name: tensor for tensors, _ in files.values() for tensor in tensors}
    values = weights_as_trained(onto.folder, placed, onto.packed, device) if onto else {}
    return plan_merge(files, Adapter.open(adapter), tied_embeddings(base), values)


def read_base(base: Path) -> dict[str, tuple[list[Tensor], dict[str, str]]]:
    """Weight file → its tensors and metadata."""
    return {file: read_tensors(base / file) for file in weight_files(base, [path.name for path in base.iterdir()])}


def unmergeable(base: Path, modules: Iterable[str], shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Those of the adapted `modules`, named as without PEFT, that the base's files hold no plain weight for, or one of
    another shape than in `shapes`: bitsandbytes turns the weights that GPT-2 has the other way round.
    """
    held = {tensor.name: tensor.shape for tensors, _ in read_base(base).values() for tensor in tensors}
    if tied_embeddings(base):
        held.setdefault(HEAD, ())
    missing = {module for module in modules if f"{module}.weight" not in held}
    turned = {name for name, shape in shapes.items() if held.get(f"{name}.weight") == shape[::-1] != shape}
    return sorted(missing | turned)


def require_mergeable(model: Any, base: Path) -> None:
    """Raises `InputError` for layers, adapted or held in 4 bits, whose weights the base's files hold in another form:
    they could not be merged.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = [
        (name.removeprefix("base_model.model.").removesuffix(".base_layer"), module)
        for name, module in model.named_modules()
    ]
    changed = [name for name, module in modules if isinstance(module, BaseTunerLayer | Linear4bit)]
    packed = [(name, module) for name, module in modules if isinstance(module, Linear4bit | Linear8bitLt)]
    shapes = {name: (module.out_features, module.in_features) for name, module in packed}
    wrong = unmergeable(base, changed, shapes)
    if wrong:
        raise InputError(
            "these layers cannot be merged: the base's files hold them in another form",
            where="/export",
            found=f"{len(wrong)} layers, first {wrong[0]}",
            expected="a weight for each adapted layer",
            hint="Leave out export.merged and export.gguf, or choose other lora.targets or model.precision 16bit",
        )


def write_weights(plan: MergePlan, target: Path, device: str) -> None:
    """Every file of `plan` under `target`; tensors are made by a few threads, each a block at a time."""
    jobs: list[tuple[Tensor, Change]] = []
    for file, changes in plan.files.items():
        sizes = [(name, c.base.dtype, c.base.shape, c.base.bytes) for name, c in changes.items()]
        placed = lay_out(target / file, sizes, plan.metadata[file])
        jobs += [(tensor, changes[tensor.name]) for tensor in placed]
    with ThreadPoolExecutor(merging_threads(device == "cpu")) as pool:
        futures = [pool.submit(lambda t, c: fill(t, c.blocks(device)), tensor, change) for tensor, change in jobs]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def handle(request: MergeRequest) -> MergeReport:
    return merge_adapter(**vars(request))


if __name__ == "__main__":
    serve(handle)
