"""The adapter (or every weight) as the trainer left it, compared with what lies on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from job.errors import GateError
from job.export.generation import GENERATION, generation_settings, writable, write_document
from job.export.tokenizer import save_tokenizer
from job.source import FetchedModel

WEIGHTS = "adapter_model.safetensors"
SECOND = re.compile(r"(?<=\blora_)B\b|(?<=\blora_embedding_)B\b")  # of two matrices, the one that begins with zeros


def export_adapter(model: Any, tokenizer: Any, base: FetchedModel, folder: Path) -> dict[str, Path]:
    """Writes the PEFT adapter with tokenizer and chat template to `folder`; returns its files by key.

    Raises `GateError` if what lies on disk is not what was trained.
    """
    folder.mkdir(parents=True)
    model.save_pretrained(folder, safe_serialization=True, selected_adapters=["default"])
    save_tokenizer(tokenizer, base.path, folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card names the path the base was loaded from
    name_base(folder / "adapter_config.json", base.public_id, base.revision)
    check_adapter(model, folder)
    return files_by_key(folder)


def export_full(model: Any, tokenizer: Any, end_ids: list[int], base: FetchedModel, folder: Path) -> dict[str, Path]:
    """Writes every weight of a fully trained model with its tokenizer to `folder`. Returns its files by key."""
    folder.mkdir(parents=True)
    with writable(model, folder):
        model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(tokenizer, base.path, folder)
    ids = {"eos_token_id": end_ids[0] if len(end_ids) == 1 else end_ids, "pad_token_id": tokenizer.pad_token_id}
    write_document(folder / GENERATION, generation_settings(base.path, ids))
    return files_by_key(folder)


def name_base(config: Path, public_id: str, revision: str | None) -> None:
    """Replaces the local path that was loaded by the id others can load, and puts layers in an order: PEFT has a set
    of them, and the file would be another one in each run.
    """
    settings = json.loads(config.read_text("utf-8"))
    settings |= {"base_model_name_or_path": public_id, "revision": revision}
    if isinstance(layers := settings.get("target_modules"), list):
        settings["target_modules"] = sorted(layers)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


def check_adapter(model: Any, folder: Path) -> None:
    """Compares every stored tensor with the trained one, bit for bit. Raises `GateError` where one is another, or where
    none of the products of two matrices, which are what an adapter adds, is anything but zero.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    stored, trained = load_file(folder / WEIGHTS), get_peft_model_state_dict(model)
    wrong = sorted(stored.keys() ^ trained.keys())
    wrong += [n for n in stored.keys() & trained.keys() if not torch.equal(stored[n], trained[n].detach().cpu())]
    if wrong:
        found = f"{len(wrong)} tensors differ, first {wrong[0]}"
        raise GateError(
            "the stored adapter is not the trained one", where=WEIGHTS, found=found, expected="equal tensors"
        )
    pairs = [(tensor, stored[SECOND.sub("A", name)]) for name, tensor in stored.items() if SECOND.search(name)]
    if not any(second.any() and first.any() for second, first in pairs):
        raise GateError(
            "the adapter is zero: it leaves the base as it is",
            where=WEIGHTS,
            found="in each layer a matrix that is all zeros",
            expected="trained matrices, or adapters that do not cancel out",
        )


def files_by_key(folder: Path) -> dict[str, Path]:
    """Files below `folder`, made readable for other users (safetensors writes 0600), by their keys at the output."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        path.chmod(0o644)
    return {f"{folder.name}/{path.relative_to(folder)}": path for path in files}
