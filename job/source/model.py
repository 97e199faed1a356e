"""Fetching the base model: first what describes it, later its weights, both of the same pinned revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from job.errors import InputError
from job.source.given_adapter import FetchedAdapter
from job.source.model_files import CONFIG, check_architecture, check_weights, config_files, read_object, weight_files
from job.source.place import LocalOrigin, Place, at_revision, origin_of, pointed
from job.store.base import local_path

POINTER = "/model/source"
FOLDERS = {POINTER: "model", "/model/merge_base": "merge_base"}
SHAPE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
HUB_NOTES = ".cache"  # huggingface_hub's own notes about what it downloaded where


@dataclass(frozen=True)
class FetchedModel:
    """A model's folder. `path` holds `files` at once and `weights` after `fetch_model_weights`.

    `source` is the address in the spec, at `pointer`.
    `public_id` is what a reader elsewhere can use: `org/name`, the S3 address, or a local directory's own name.
    `revision` is the commit on the Hub; S3 and local directories have none. `weight_bytes` is the size of all weights.
    """

    source: str
    pointer: str
    path: Path
    public_id: str
    revision: str | None
    licence: str | None
    files: tuple[str, ...]
    weights: tuple[str, ...]
    weight_bytes: int
    adapters: tuple[FetchedAdapter, ...] = ()  # that the training goes on from, or that are combined

    @property
    def copied_bytes(self) -> int:
        """What fetching the weights adds to the disk: local ones are linked."""
        return self.weight_bytes if "://" in self.source else 0

    @property
    def quantised(self) -> bool:
        """Whether the weights are packed in fewer bits already."""
        return "quantization_config" in read_object(self.path / CONFIG)


def fetch_model_config(
    source: str, workdir: Path, pointer: str = POINTER, revisions: Mapping[str, str] = MappingProxyType({})
) -> FetchedModel:
    """Everything of the model at `source` but its weights: config, tokenizer, templates, index.

    `pointer` is the place in the spec that names it, and decides the folder under `workdir`. `revisions`: commits to
    take in place of what a branch is now, by that place.

    Raises `InputError` for a model that is not there, incomplete or not to be read, `PolicyError` for one that needs
    pickles or remote code, `TransientError` for the network.
    """
    folder = workdir.resolve() / FOLDERS[pointer]
    with pointed(pointer):
        origin = _origin(at_revision(source, revisions.get(pointer)))
        sizes = {file.key: file.bytes for file in origin.files()}
        files = config_files(sizes)
        _check_alone(folder, {name for name in sizes if "/" not in name})
        origin.stage(files, folder)
        check_architecture(folder)
        weights = weight_files(folder, sizes)
    weight_bytes = sum(sizes[name] for name in weights)
    return FetchedModel(
        source,
        pointer,
        folder,
        origin.public_id,
        origin.revision,
        origin.licence,
        tuple(files),
        tuple(weights),
        weight_bytes,
    )


def fetch_model_weights(model: FetchedModel) -> FetchedModel:
    """The weights of a model whose config is there, of the same revision. Raises as `fetch_model_config` does."""
    with pointed(model.pointer):
        origin = _origin(at_revision(model.source, model.revision))
        origin.stage(model.weights, model.path)
        check_weights(model.path, model.weights)
    return model


def check_merge_base(base: FetchedModel, merge_base: FetchedModel) -> None:
    """Raises `InputError` unless `base` is quantised and `merge_base` is a 16-bit model of its shape."""
    if not base.quantised:
        raise InputError(
            "the base is 16-bit itself: adapters are merged into it",
            where=merge_base.pointer,
            found=merge_base.public_id,
            expected="no merge_base",
        )
    if merge_base.quantised:
        raise InputError(
            "the base for merging is quantised itself",
            where=merge_base.pointer,
            found=merge_base.public_id,
            expected="16-bit weights",
        )
    ours, theirs = (read_object(model.path / CONFIG) for model in (base, merge_base))
    different = [key for key in SHAPE if ours.get(key) != theirs.get(key)]
    if different:
        found = ", ".join(f"{key} {theirs.get(key)}" for key in different)
        expected = ", ".join(f"{key} {ours.get(key)}" for key in different)
        raise InputError(
            "this is not the model that was quantised", where=merge_base.pointer, found=found, expected=expected
        )


def _origin(source: str) -> Place:
    return origin_of(source, "model") if "://" in source else open_local(source)


def open_local(path: str) -> LocalOrigin:
    """A local model's folder. Raises `InputError` where there is none."""
    if local_path(path).is_file():
        hint = "GGUF files cannot be trained: give the model that it was made from" if path.endswith(".gguf") else ""
        raise InputError(
            "a model is a directory",
            found=ascii(path),
            expected="a directory with config.json and safetensors",
            hint=hint,
        )
    return LocalOrigin(path, "hf://")


def _check_alone(folder: Path, names: set[str]) -> None:
    """Raises `InputError` if the folder holds what the loader would see and this model does not have."""
    strangers = {path.name for path in folder.iterdir()} - names - {HUB_NOTES} if folder.exists() else set()
    if strangers:
        raise InputError(
            f"{folder} is not empty", found=ascii(min(strangers)), expected="a work directory of this run alone"
        )
