"""The adapter that a training goes on from: fetched, found to be whole, and compared with what the spec says of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from job.errors import Fault, GateError, InputError, PolicyError
from job.hub.origin import COMMIT
from job.ledger.evidence import STATS
from job.ledger.manifest import MANIFEST, SHOWN_CHARACTERS, SPEC, Manifest, decode
from job.source.model_files import REFUSED_WEIGHTS, SAFETENSORS_HINT, read_object
from job.source.place import LocalOrigin, Place, at_revision, origin_of, pointed
from job.source.run_before import RunBefore, run_before
from job.spec import LoraSpec, job_schema
from job.spec.data_rules import hub_name
from job.store.base import sha256_of
from job.weights.layout import read_tensors

POINTER = "/model/adapter"
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BELOW = "adapter/"  # of a run's output, or of a repository that it was pushed to
# What PEFT can and the section lora cannot say
UNSAID = ("rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication", "exclude_modules",
          "target_parameters", "trainable_token_indices", "lora_bias", "use_qalora", "loftq_config",
          "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config")  # fmt: skip
# How an adapter was begun without changing the base; others, such as PiSSA, took a part out of it
BEGUN = (True, False, None, "gaussian", "eva", "orthogonal")
NUMBER_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
MIRROR = re.compile(r"(?:-unsloth)?-bnb-4bit$")  # of a Hub model, its weights packed
AS_IT_IS = "Write the section lora as the adapter has it, or take another adapter"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class FetchedAdapter:
    """`path` has its settings and weights. `source`, `pointer`, `public_id` and `revision` as of a fetched model;
    `run_id` of the run that has made it, and what it had measured, where the place says so; `sha256` of the weights.
    """

    source: str
    pointer: str
    path: Path
    public_id: str
    revision: str | None
    run_id: str | None
    sha256: str
    before: RunBefore | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.public_id}{f' of run {self.run_id}' if self.run_id else ''}"

    @property
    def rank(self) -> int:
        rank: int = read_object(self.path / SETTINGS)["r"]
        return rank

    @property
    def provenance(self) -> dict[str, str | None]:
        """As the manifest has it."""
        return {name: getattr(self, name) for name in ("source", "public_id", "revision", "run_id", "sha256")}


def fetch_adapter(
    address: str, lora: LoraSpec, workdir: Path, revisions: Mapping[str, str] = MappingProxyType({}),
    pointer: str = POINTER, of_several: bool = False,
) -> FetchedAdapter:  # fmt: skip
    """The adapter at `address`, below `workdir`. Where a run has stored it, each file must have its manifest's hash.
    Its rank and alpha are its own where it is one `of_several`.

    Raises `InputError` for what is not an adapter, not whole, of an unfinished run, or other than `lora` says,
    `PolicyError` for weights in another form than safetensors, `TransientError` for the network.
    """
    folder = workdir.resolve() / pointer.removeprefix("/").replace("/", "-")
    with pointed(pointer):
        origin = origin_of(at_revision(address, revisions.get(pointer)), "model")
        names = [file.key for file in origin.files()]
        below = _place(names)
        taken = [below + SETTINGS, below + WEIGHTS]
        made_by = _manifest(origin, names, folder) if below else None
        origin.stage(taken, folder)
        sha256 = _require_listed(made_by, folder, taken)
        path = folder / below
        settings = read_object(path / SETTINGS)
        require_settings(settings, scaled(lora, settings) if of_several else lora)
        require_numbers(path / WEIGHTS)
        before = run_before(origin, made_by, folder) if made_by and STATS in names else None
    run_id = made_by.run_id if made_by else None
    return FetchedAdapter(address, pointer, path, origin.public_id, origin.revision, run_id, sha256, before)


def scaled(lora: LoraSpec, settings: Json) -> LoraSpec:
    """With the rank and alpha of these settings. Raises `InputError` where they are none."""
    limits = job_schema()["definitions"]["lora"]["properties"]
    for key, most in (("r", limits["r"]["maximum"]), ("lora_alpha", limits["alpha"]["maximum"])):
        number: Any = settings.get(key)
        if type(number) not in ((int,) if key == "r" else (int, float)) or not 0 < number <= most:
            raise InputError(f"{SETTINGS} is damaged", found=f"{key} {json.dumps(number)[:SHOWN_CHARACTERS]}",
                             expected=f"a number above 0, up to {most}")  # fmt: skip
    return replace(lora, r=settings["r"], alpha=float(settings["lora_alpha"]))


def require_rank(ranks: Sequence[int], method: str, rank: int) -> None:
    """Raises `InputError` where `method` cannot combine adapters of these `ranks`, or makes another than `rank`."""
    if method.endswith("svd"):
        return
    if method != "cat" and len(set(ranks)) > 1:
        raise InputError(f"{method} combines adapters of one rank", where="/model/combine/method",
                         found=f"ranks {', '.join(map(str, ranks))}", expected="one rank",
                         hint="Choose cat, svd, or the method with _svd")  # fmt: skip
    made = sum(ranks) if method == "cat" else ranks[0]
    if made != rank:
        raise InputError("the combined adapter has another rank", where="/lora/r", found=str(rank),
                         expected=f"{made}, of the ranks {', '.join(map(str, ranks))} by {method}")  # fmt: skip


def look_at_adapter(address: str, lora: LoraSpec, pointer: str = POINTER, of_several: bool = False) -> int:
    """Its rank, and whether what is seen of a local one without reading its weights is right. Raises as `fetch_adapter`
    does.
    """
    with pointed(pointer):
        paths = LocalOrigin(address, "hf://").glimpse()
        below = _place(list(paths))
        _require_finished(list(paths))
        settings = read_object(paths[below + SETTINGS])
        own = scaled(lora, settings)
        require_settings(settings, own if of_several else lora)
        require_numbers(paths[below + WEIGHTS])
        return own.r


def require_base(adapter: FetchedAdapter, public_id: str, revision: str | None) -> None:
    """Raises `InputError` for an adapter that was trained on another base, as far as it says on which: a model of the
    Hub by its name (mirrors and packed copies have the same) and, where that is all the same, by its commit.
    """
    settings = read_object(adapter.path / SETTINGS)
    named, commit = settings.get("base_model_name_or_path"), settings.get("revision")
    if revision is None or not isinstance(named, str) or not hub_name(named):
        return
    if _stem(named) != _stem(public_id):
        raise InputError("this adapter belongs to another base", where=adapter.pointer, found=ascii(named),
                         expected=ascii(public_id),
                         hint="Name in model.source the base that it was trained on")  # fmt: skip
    if named == public_id and COMMIT.fullmatch(str(commit)) and commit != revision:
        raise InputError("this adapter belongs to another revision of the base", where="/model/source", found=revision,
                         expected=str(commit), hint=f"Write hf://{public_id}@{commit}")  # fmt: skip


def require_settings(found: Json, lora: LoraSpec) -> None:
    """Raises `InputError` for each setting of the adapter that the spec has otherwise."""
    if found.get("peft_type") != "LORA":
        raise InputError("not a LoRA adapter", found=ascii(found.get("peft_type")), expected="peft_type LORA")
    said = [name for name in UNSAID if found.get(name)]
    if said:
        name = said[0]
        raise InputError("this adapter has settings that a spec cannot name", found=f"{name} {json.dumps(found[name])}",
                         expected=f"no {name}")  # fmt: skip
    begun = found.get("init_lora_weights", True)
    if (begun.lower() if isinstance(begun, str) else begun) not in BEGUN:
        raise InputError(
            "this adapter belongs to a base that its start has changed",
            expected="one of the plain base",
            found=f"init_lora_weights {json.dumps(begun)[:SHOWN_CHARACTERS]}",
            hint="PEFT converts it: save_pretrained with path_initial_model_for_weight_conversion",
        )
    faults = list(_differences(found, lora))
    if faults:
        raise InputError(*faults)


def _differences(found: Json, lora: LoraSpec) -> Iterator[Fault]:
    whole = found.get("modules_to_save") or []
    whole = sorted(map(str, whole)) if isinstance(whole, list) else whole
    pairs = {
        "r": (lora.r, found.get("r")),
        "alpha": (lora.alpha, found.get("lora_alpha")),
        "rslora": (lora.rslora, bool(found.get("use_rslora"))),
        "dora": (lora.dora, bool(found.get("use_dora"))),
        "bias": (lora.bias, found.get("bias", "none")),
        "modules_to_save": (sorted(lora.modules_to_save), whole),
    }
    targets = found.get("target_modules")
    if not isinstance(lora.targets, str) and isinstance(targets, list):
        pairs["targets"] = _last_parts(lora.targets), _last_parts(targets)
    for key, (wanted, own) in pairs.items():
        if wanted != own:
            yield Fault("the adapter has this otherwise", where=f"/lora/{key}", found=json.dumps(wanted),
                        expected=f"{json.dumps(own)}, as the adapter", hint=AS_IT_IS)  # fmt: skip


def require_numbers(path: Path) -> None:
    """Raises `InputError` for a file of weights that is cut, or has others than floating-point numbers."""
    tensors, _ = read_tensors(path)
    at = tensors[0].start if tensors else 0
    for tensor in tensors:
        if tensor.dtype not in NUMBER_BYTES:
            what, known = f"{path.name}: {tensor.name} is not of floating-point numbers", ", ".join(NUMBER_BYTES)
            raise InputError(what, found=ascii(tensor.dtype), expected=f"one of {known}")
        if (tensor.start, tensor.bytes) != (at, NUMBER_BYTES[tensor.dtype] * math.prod(tensor.shape)):
            raise InputError(f"{path.name} is damaged: {tensor.name} is not where its header says")
        at += tensor.bytes


def _last_parts(targets: Iterable[str]) -> list[str]:
    """The adapter may name each layer in full where the spec names kinds of layers, or all of them."""
    return sorted({str(target).rpartition(".")[2] for target in targets})


def _place(names: list[str]) -> str:
    """In which folder of a place the adapter is, "" for the top, where a run's output has none of its own."""
    for below in (BELOW,) if SPEC in names else ("", BELOW):
        if below + SETTINGS not in names:
            continue
        if below + WEIGHTS in names:
            return below
        pickled = [
            name for name in names if name.startswith(f"{below}adapter_model") and name.endswith(REFUSED_WEIGHTS)
        ]
        if pickled:
            raise PolicyError("the adapter is not in a form the job loads", found=ascii(pickled[0]), expected=WEIGHTS,
                              hint=SAFETENSORS_HINT)  # fmt: skip
        raise InputError("the adapter has no weights", expected=f"{WEIGHTS} beside {SETTINGS}")
    shown = ", ".join(map(ascii, sorted(names)[:5])) or "nothing"
    raise InputError("there is no adapter", found=shown, expected=f"{SETTINGS} at the top, or in {BELOW}",
                     hint="Name the output of a run, or the folder of an adapter")  # fmt: skip


def _manifest(origin: Place, names: list[str], folder: Path) -> Manifest | None:
    """Of the run whose output this is; None for a repository, which has no manifest."""
    _require_finished(names)
    if MANIFEST not in names:
        return None
    origin.stage([MANIFEST], folder)
    try:
        return decode((folder / MANIFEST).read_bytes())
    except GateError as error:
        raise InputError(*error.faults) from error


def _require_finished(names: list[str]) -> None:
    if SPEC in names and MANIFEST not in names:
        raise InputError("the run there has not finished", expected=MANIFEST,
                         hint="A run writes it last, when every gate has let it through")  # fmt: skip


def _require_listed(made_by: Manifest | None, folder: Path, taken: list[str]) -> str:
    """The hash of the last of those that were `taken`. Raises `InputError` for a file that is not the published one."""
    listed = {file.key: file.sha256 for file in made_by.files} if made_by else {}
    found = ""
    for name in taken:
        found = sha256_of(folder / name)
        if made_by and listed.get(name) != found:
            raise InputError(f"{name} is not the file that the run has published", found=f"sha256 {found}",
                             expected=f"sha256 {listed.get(name)}",
                             hint="tunejob verify names every damaged file")  # fmt: skip
    return found


def _stem(name: str) -> str:
    return MIRROR.sub("", name.rpartition("/")[2].lower())
