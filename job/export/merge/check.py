"""The merged folder reopened: weights against base and adapter, documents against what was trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from job.errors import Fault, GateError, InputError
from job.export.merge.changes import Change, Merged, MergePlan
from job.export.merge.documents import documents
from job.export.tokenizer import open_tokenizer
from job.source.model_files import read_object
from job.weights.layout import Tensor, read_tensors

THREADS = 2
FP32_SLACK = 2.0**-20  # sums in another order, as a part of the largest value
SAMPLE_TEXT = "Hello, wörld!\n\n  3.14159 = π; 日本語 🤖 \t'quoted' <b>tag</b>"
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def check_merged(base: Path, adapter: Path, target: Path, end_ids: list[int], plan: MergePlan, device: str) -> None:
    """Raises `GateError` with every file and tensor of `target` that is not what `plan` and the training make it.

    Untouched tensors equal the base's byte for byte (where they were held in 4 bits, what these say), wholly trained
    ones the adapter's; of the merged ones a sample, one of each kind of layer, is computed again by PEFT and must agree
    to one step of its type.
    """
    faults = [*weight_faults(adapter, target, plan, device), *document_faults(base, adapter, target, end_ids, plan)]
    if faults:
        raise GateError(*faults)


# ------------------------------------------------------------------------------------------------------ weights


def weight_faults(adapter: Path, target: Path, plan: MergePlan, device: str) -> Iterator[Fault]:
    """Everything that is wrong with the weight files of `target`."""
    settings = read_object(adapter / "adapter_config.json")
    sample = set(sampled(plan))

    def look(item: tuple[str, Tensor, Change]) -> list[Fault]:
        file, found, change = item
        if isinstance(change, Merged):
            return list(_merge_faults(file, found, change, settings, device)) if found.name in sample else []
        return (
            []
            if found.holds(change.blocks(device))
            else [
                Fault(f"{found.name} is not as it should be", where=file, found="other bytes", expected="equal bytes")
            ]
        )

    items: list[tuple[str, Tensor, Change]] = []
    for name, changes in plan.files.items():
        file = f"{target.name}/{name}"
        try:
            found = {tensor.name: tensor for tensor in read_tensors(target / name)[0]}
        except (InputError, FileNotFoundError) as error:
            yield Fault("this file is not whole", where=file, found=str(error), expected=f"{len(changes)} tensors")
            continue
        for tensor, change in changes.items():
            if tensor not in found or _form(found[tensor]) != _form(change.base):
                yield Fault(
                    f"{tensor} is missing or of another form",
                    where=file,
                    expected=f"{change.base.dtype} {list(change.base.shape)}",
                )
            else:
                items.append((file, found[tensor], change))
        yield from (
            Fault(f"{tensor} does not belong here", where=file) for tensor in sorted(found.keys() - changes.keys())
        )
    with ThreadPoolExecutor(THREADS) as pool:
        for faults in pool.map(look, items):
            yield from faults


def _form(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def sampled(plan: MergePlan) -> list[str]:
    """One merged tensor of each kind of layer, spread from the first layer to the last."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for _, name, change in plan.tensors:
        if isinstance(change, Merged):
            kinds[name.split(".")[-2]].append(name)
    return [names[(len(names) - 1) * i // max(1, len(kinds) - 1)] for i, names in enumerate(kinds.values())]


def _merge_faults(file: str, found: Tensor, change: Merged, settings: dict[str, Any], device: str) -> Iterator[Fault]:
    rows = change.base.shape[0] if change.fan_in_fan_out else None
    pairs = zip(found.blocks(rows), change.weight.blocks(rows), strict=True)
    steps = max(
        steps_apart(new.to(device), merged_by_peft(change, old, first, settings, device))
        for (first, new), (_, old) in pairs
    )
    if not steps <= 1:
        yield Fault(
            f"{found.name} is not what PEFT merges",
            where=file,
            found=f"{steps:.3g} steps of {found.dtype} apart",
            expected="at most 1",
        )


def merged_by_peft(change: Merged, weight: Any, first: int, settings: dict[str, Any], device: str) -> Any:
    """The merge of `weight`, rows of the base's matrix from number `first`, in fp32 by PEFT's own layer.

    It takes its scaling from the adapter's `settings`, not from our reading of them.
    """
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import Linear
    from transformers.pytorch_utils import Conv1D

    inputs, outputs = weight.shape if change.fan_in_fan_out else weight.shape[::-1]
    rows, rank = slice(first, first + outputs), change.a.shape[0]
    layer: Any = (
        Conv1D(outputs, inputs)
        if change.fan_in_fan_out
        else torch.nn.Linear(inputs, outputs, bias=False, device="meta")
    )
    layer.weight = torch.nn.Parameter(weight.to(device).float(), requires_grad=False)
    options = {key: settings[key] for key in ("lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out")}
    config = LoraConfig(r=rank, init_lora_weights=False, **options)
    adapted = Linear(layer, "default", config, r=rank, lora_alpha=settings["lora_alpha"])
    with torch.no_grad():
        adapted.lora_A["default"].weight.copy_(change.a.load())
        adapted.lora_B["default"].weight.copy_(change.b.load()[rows])
        if change.magnitude is not None:
            adapted.lora_magnitude_vector["default"].weight.copy_(change.magnitude.load()[rows])
        adapted.merge()
    return adapted.get_base_layer().weight.detach()


def steps_apart(stored: Any, exact: Any) -> float:
    """The largest difference between `stored` and fp32 values `exact` rounded to its type, in steps of that type."""
    import torch

    rounded = exact.to(stored.dtype).float()
    size = torch.maximum(stored.float().abs(), rounded.abs())
    step = torch.finfo(stored.dtype).eps * torch.exp2(torch.frexp(size).exponent - 1.0)
    return float(((stored.float() - rounded).abs() / (step + FP32_SLACK * rounded.abs().max())).max())


# ---------------------------------------------------------------------------------------------------- documents


def document_faults(base: Path, adapter: Path, target: Path, end_ids: list[int], plan: MergePlan) -> Iterator[Fault]:
    """Everything that is wrong with config, generation config, index, tokenizer or chat template of `target`."""
    trained = open_tokenizer(adapter)
    for name, expected in documents(base, trained, end_ids, plan).items():
        file = f"{target.name}/{name}"
        if not (target / name).is_file():
            yield Fault("this file is missing", where=file)
            continue
        found = read_object(target / name)
        for key in sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)):
            yield Fault(
                f"{key} is not as trained", where=file, found=_shown(found.get(key)), expected=_shown(expected.get(key))
            )
    yield from _tokenizer_faults(trained, target)


def _tokenizer_faults(trained: Any, target: Path) -> Iterator[Fault]:
    try:
        found = open_tokenizer(target)
    except (OSError, ValueError) as error:
        yield Fault("the tokenizer cannot be opened", where=target.name, found=f"{type(error).__name__}: {error}")
        return
    if found.chat_template != trained.chat_template:
        yield Fault(
            "the chat template is not the trained one",
            where=f"{target.name}/chat_template.jinja",
            found=_shown(found.chat_template),
            expected=_shown(trained.chat_template),
        )
    facts = {name: (getattr(found, name), getattr(trained, name)) for name in SPECIAL_IDS}
    text = SAMPLE_TEXT + "".join(trained.all_special_tokens)
    facts |= {
        "ids of a sample text": (found.encode(text), trained.encode(text)),
        "vocabulary size": (len(found), len(trained)),
    }
    for name, (is_now, was) in facts.items():
        if is_now != was:
            yield Fault(
                f"{name} is not as trained",
                where=f"{target.name}/tokenizer.json",
                found=_shown(is_now),
                expected=_shown(was),
            )


def _shown(value: Any) -> str:
    return ascii(value)[:200]
