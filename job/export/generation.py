"""Settings of generation that transformers reads and refuses to write: they must not cost the weights beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.source.model_files import CONFIG, read_object

GENERATION = "generation_config.json"


def generation_settings(base: Path, ids: Mapping[str, Any]) -> dict[str, Any]:
    """The base's own settings, from its file or else its config, with the trained special `ids`."""
    from transformers import GenerationConfig

    if (base / GENERATION).is_file():
        return read_object(base / GENERATION) | dict(ids)
    known = GenerationConfig._get_default_generation_params().keys() - {"use_cache"}
    return {key: value for key, value in read_object(base / CONFIG).items() if key in known} | dict(ids)


def unwritable_settings(base: Path, scratch: Path) -> str:
    """What transformers would refuse to write of them, such as a temperature beside `do_sample: false`; "" for nothing.

    Raises `InputError` where it cannot even read them.
    """
    from transformers import GenerationConfig

    if not (base / GENERATION).is_file():
        return ""
    try:
        settings = GenerationConfig.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{GENERATION} cannot be read",
            where="/model/source",
            found=f"{type(error).__name__}: {error}",
            expected="settings that transformers takes",
        ) from error
    try:
        settings.save_pretrained(scratch)
    except ValueError as error:
        return " ".join(str(error).split())
    return ""


@contextmanager
def writable(model: Any, folder: Path) -> Iterator[None]:
    """Within, `model.save_pretrained(folder)` writes its weights whatever settings of generation came with it: those of
    the model are set aside, those in its config are put into the written `config.json` afterwards.
    """
    kept = {key: getattr(model.config, key) for key in model.config._get_generation_parameters()}
    settings = model.generation_config
    model.generation_config = type(settings)()
    for key in kept:
        delattr(model.config, key)
    try:
        yield
    finally:
        model.generation_config = settings
        for key, value in kept.items():
            setattr(model.config, key, value)
    if kept:
        write_document(folder / CONFIG, read_object(folder / CONFIG) | kept)


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", "utf-8")
