"""What lies beside merged weights: config, generation config, index, tokenizer and chat template as trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from job.export.adapter import WEIGHTS
from job.export.generation import GENERATION
from job.export.merge.changes import MergePlan
from job.export.tokenizer import open_tokenizer
from job.source.model_files import CONFIG, INDEX, read_object

ADAPTER_ONLY = {"adapter_config.json", WEIGHTS, "README.md"}
Json = dict[str, Any]


def tied_embeddings(base: Path) -> bool:
    """Whether the model's input and output matrix are one, by its config or its architecture's default."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    return bool(config.tie_word_embeddings or config.get_text_config().tie_word_embeddings)


def write_documents(base: Path, adapter: Path, target: Path, end_ids: list[int], plan: MergePlan) -> None:
    """All but the weights."""
    for path in adapter.iterdir():
        if path.is_file() and path.name not in ADAPTER_ONLY:
            shutil.copyfile(path, target / path.name)
    for name, document in documents(base, open_tokenizer(adapter), end_ids, plan).items():
        (target / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def documents(base: Path, tokenizer: Any, end_ids: list[int], plan: MergePlan) -> dict[str, Json]:
    """File name → contents of the JSON files that are not the tokenizer's, for the trained `tokenizer`."""
    ids = token_ids(tokenizer, end_ids)
    config = read_object(base / CONFIG)
    for section in _sections(config):
        section |= {key: value for key, value in ids.items() if key in section or section is config}
        if plan.untied and (section is config or "tie_word_embeddings" in section):
            section["tie_word_embeddings"] = False
    generation = read_object(base / GENERATION) if (base / GENERATION).is_file() else {}
    found = {CONFIG: config, GENERATION: generation | ids}
    if len(plan.files) > 1 or (base / INDEX).is_file():
        found[INDEX] = index(plan)
    return found


def _sections(config: Json) -> list[Json]:
    text = config.get("text_config")
    return [config, text] if isinstance(text, dict) else [config]


def token_ids(tokenizer: Any, end_ids: list[int]) -> dict[str, int | list[int]]:
    """The special ids as trained: every end of an answer, and the tokenizer's start and padding where it has them."""
    ids: dict[str, int | list[int] | None] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end_ids[0] if len(end_ids) == 1 else end_ids or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {key: value for key, value in ids.items() if value is not None}


def index(plan: MergePlan) -> Json:
    """The index of sharded weights, as transformers writes it."""
    total = sum(change.base.bytes for _, _, change in plan.tensors)
    return {"metadata": {"total_size": total}, "weight_map": {name: file for file, name, _ in plan.tensors}}
