"""Fetching the base model: first what describes it, later its weights, both of the same pinned revision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from job.errors import Fault, InputError
from job.source.hub import HubOrigin
from job.source.model_files import check_architecture, check_weights, config_files, weight_files
from job.source.origin import LocalOrigin, Origin, S3Origin, pointed
from job.spec import ModelSpec

POINTER = "/model/source"
HUB_NOTES = ".cache"  # huggingface_hub's own notes about what it downloaded where


@dataclass(frozen=True)
class FetchedModel:
    """A model's folder. `path` holds `files` at once and `weights` after `fetch_model_weights`.

    `public_id` is what a reader elsewhere can use: `org/name`, the S3 address, or a local directory's own name.
    `revision` is the commit on the Hub; S3 and local directories have none. `weight_bytes` is the size of all weights.
    """

    path: Path
    public_id: str
    revision: str | None
    licence: str | None
    files: tuple[str, ...]
    weights: tuple[str, ...]
    weight_bytes: int


def fetch_model_config(spec: ModelSpec, workdir: Path) -> FetchedModel:
    """Everything of the model but its weights, into `workdir/model`: config, tokenizer, templates, index.

    Raises `InputError` for a model that is not there, incomplete or not to be read, `PolicyError` for one that needs
    pickles or remote code, `TransientError` for the network.
    """
    folder = workdir.resolve() / "model"
    with pointed(POINTER):
        origin = _origin(spec.source)
        sizes = {file.key: file.bytes for file in origin.files()}
        files = config_files(sizes)
        _check_alone(folder, {name for name in sizes if "/" not in name})
        origin.stage(files, folder)
        check_architecture(folder)
        weights = weight_files(folder, sizes)
    weight_bytes = sum(sizes[name] for name in weights)
    return FetchedModel(folder, origin.public_id, origin.revision, origin.licence, tuple(files), tuple(weights), weight_bytes)


def fetch_model_weights(model: FetchedModel, spec: ModelSpec) -> FetchedModel:
    """The weights of a model whose config is there, of the same revision. Raises as `fetch_model_config` does."""
    with pointed(POINTER):
        origin = _origin(f"hf://{model.public_id}@{model.revision}" if model.revision else spec.source)
        origin.stage(model.weights, model.path)
        check_weights(model.path, model.weights)
    return model


def _origin(source: str) -> Origin:
    if source.startswith("hf://"):
        return HubOrigin(source, "model")
    if source.startswith("s3://"):
        return S3Origin(source)
    if Path(source).expanduser().is_file():
        raise InputError(Fault("a model is a directory", found=ascii(source), expected="a directory with config.json and safetensors"))
    return LocalOrigin(source)


def _check_alone(folder: Path, names: set[str]) -> None:
    """Raises `InputError` if the folder holds what the loader would see and this model does not have."""
    strangers = {path.name for path in folder.iterdir()} - names - {HUB_NOTES} if folder.exists() else set()
    if strangers:
        raise InputError(Fault(f"{folder} is not empty", found=ascii(min(strangers)), expected="a work directory of this run alone"))
