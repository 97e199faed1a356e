"""The card's YAML, by which the Hub files a model. Nothing goes in that is not an identifier."""

from __future__ import annotations

import re
from typing import Any

from job.export.kinds import EXPORTS, Export
from job.publish.card.facts import HUB_ID, CardFacts, use_of

RELATIONS = ("finetune", "quantized", "adapter")  # of several kinds, the first is the model's
LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
NOT_SLUG = re.compile(r"[^a-z0-9.]+")
LONGEST_SLUG = 80
HUB = "https://huggingface.co"


def metadata(facts: CardFacts) -> str:
    """The Hub's YAML. Nothing goes in that is not an identifier, whatever the base's card or the spec says."""
    from huggingface_hub import ModelCardData

    made = [EXPORTS[name] for name in facts.kinds]
    relation = next(word for word in RELATIONS if any(kind.relation == word for kind in made))
    trained = [source.spec.source for source in facts.sources if use_of(source) == "training"]
    datasets = [found for source in trained if (found := _dataset(source))]
    known: dict[str, Any] = {
        "base_model": facts.hub_base,
        "base_model_relation": relation if facts.hub_base else None,
        "library_name": "transformers" if relation == "finetune" else "peft",
        "pipeline_tag": "text-generation",
        "datasets": list(dict.fromkeys(datasets)) or None,
        "tags": _tags(facts, made),
        **_licence(facts),
    }
    return ModelCardData(**known).to_yaml(line_break="\n").strip()


def _tags(facts: CardFacts, made: list[Export]) -> list[str]:
    lora = ["lora", *(["qlora"] if facts.spec.model.precision == "4bit" else [])] if facts.spec.lora else []
    gguf = ["gguf"] if any(kind.folder == "gguf" for kind in made) else []
    method = [name for name in (facts.spec.training.method,) if name != "sft"]
    return ["tunejob", facts.spec.model.backend, *method, *lora, *gguf, *(["conversational"] if facts.chat else [])]


def _dataset(source: str) -> str | None:
    if not source.startswith("hf://datasets/"):
        return None
    name = source.removeprefix("hf://datasets/").partition("@")[0]
    return name if HUB_ID.fullmatch(name) else None


def _licence(facts: CardFacts) -> dict[str, str]:
    """The base's licence; one without an identifier is named after the base and points to it."""
    licence = facts.base.licence
    if not licence:
        return {"license": "unknown"}
    if isinstance(licence, str) and LICENCE_ID.fullmatch(licence) and licence != "other":
        return {"license": licence}
    link = {"license_link": f"{HUB}/{facts.hub_base}/tree/{facts.base.revision}"} if facts.hub_base else {}
    base = NOT_SLUG.sub("-", facts.base.public_id.lower()).strip("-")[:LONGEST_SLUG] or "base"
    return {"license": "other", "license_name": f"license-of-{base}", **link}
