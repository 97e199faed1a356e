"""What can be made of a training: every kind of artefact, in the order in which they are made.

Light, and imports no folder after `gguf/`: the rules of a spec and the plan ask it, too. A further form of the merged
weights is a module like `job.export.four_bit` and an entry here; the schema and its mirror say how it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from job.gguf.types import TYPES
from job.weights.shapes import NF4_BYTES, Shapes

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """How another form of the merged weights is made: by the child `module`, which offers `handle` of a `Conversion`
    and `reopen`, in the `step` of the plan that needs `ram_bytes` (of a `job.plan.host_memory.Memory`). Its weights
    have `disk_bytes`. `what` it is, for people. Its logits are compared with the merge's, within the limit `kl`.
    """

    module: str
    what: str
    step: str
    disk_bytes: Callable[[Shapes], int]
    ram_bytes: Callable[[Any], int]


@dataclass(frozen=True)
class Export:
    """A kind of artefact. The only artefact of a kind has its name, one of several with the variant: gguf-q8_0.

    `asked`: the variants that the section `export` of a spec asks for, "" the only one. `limits`: of its figures, from
    `export.limits` and the variant.
    """

    name: str
    folder: str  # at the output
    relation: Literal["finetune", "quantized", "adapter"] | None  # to its base, in the Hub's words
    asked: Callable[[Json], Iterable[str]]
    limits: Callable[[Json, str], dict[str, float]]
    measured: bool = True  # by loss and answers, as gates are about
    on_base: bool = False  # laid over the original base instead of being made of the merge
    form: Form | None = None  # for what the merge's own stages do not make

    def names(self, export: Json) -> list[str]:
        """The artefacts of this kind that are asked for."""
        return [f"{self.name}-{variant}" if variant else self.name for variant in self.asked(export)]


def kind_of(name: str) -> Export:
    """The kind of the artefact `name`."""
    return EXPORTS[name.partition("-")[0]]


def variant_of(name: str) -> str:
    """Of the artefact `name`: a GGUF's type."""
    return name.partition("-")[2]


def left_by_training(whole: bool) -> str:
    """The kind that the training itself leaves, `whole` where every weight is trained."""
    return "merged" if whole else "adapter"


def asked_for(export: Json, whole: bool) -> list[str]:
    """Names of what is asked for beside that, in the order in which it is made."""
    kinds = [kind for kind in EXPORTS.values() if kind.name != left_by_training(whole)]
    return [name for kind in kinds for name in kind.names(export)]


def measured(export: Json, whole: bool) -> list[str]:
    """What a gate may be about, beside the trained model: artefacts, and kinds of which there are several."""
    names = [left_by_training(whole), *(name for name in asked_for(export, whole) if kind_of(name).measured)]
    return list(dict.fromkeys(found for name in names for found in (kind_of(name).name, name)))


def _once(asked: object) -> list[str]:
    return [""] if asked else []


def _largest_first(export: Json) -> list[str]:
    """It takes longest to make and to upload."""
    return sorted(export.get("gguf", []), key=lambda name: -TYPES[name].bits_per_weight)


def _gguf_limits(limits: Json, name: str) -> dict[str, float]:
    """The spec's limits of a type, else its own."""
    own = TYPES[name]
    given: Json = next((limit for limit in limits["gguf"] if limit["type"] == name), {})
    kl, rise = given.get("kl"), given.get("perplexity_rise")
    return {
        "max_kl": own.max_kl if kl is None else kl,
        "max_perplexity_rise": own.max_perplexity_rise if rise is None else rise,
    }


def _nf4_bytes(shapes: Shapes) -> int:
    packed = sum(prod(shape) for _, shape in shapes.matrices())
    return int(NF4_BYTES * packed + 2 * (shapes.parameters - packed))


KINDS = (
    Export("adapter", "adapter", "adapter", lambda _: [], lambda *_: {}),
    Export("merged", "merged", "finetune", lambda export: _once("16bit" in export.get("merged", [])),
           lambda limits, _: {"logit_ratio": limits["merged_logits"], "kl": limits["merged_kl"]}),
    Export("merged_4bit", "merged_4bit", "finetune", lambda export: _once("4bit" in export.get("merged", [])),
           lambda limits, _: {"kl": limits["merged_4bit_kl"]},
           form=Form("job.export.four_bit", "4-bit weights", "four_bit", _nf4_bytes, lambda memory: memory.four_bit())),
    Export("imatrix", "gguf", None, lambda export: _once(export.get("imatrix") and export.get("gguf")),
           lambda *_: {}, measured=False),
    Export("lora_gguf", "gguf", "adapter", lambda export: _once(export.get("lora_gguf")),
           lambda limits, _: _gguf_limits(limits, "f16"), on_base=True),
    Export("gguf", "gguf", "quantized", _largest_first, _gguf_limits),
)  # fmt: skip
EXPORTS = {kind.name: kind for kind in KINDS}
