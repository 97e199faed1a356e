"""Bytes → strict JSON → schema → cross-rules → frozen dataclasses. No I/O but the shipped schema, no torch.

Source of names, defaults and limits: `schemas/job.schema.json`; the dataclasses below only mirror it
(`tests/contract/test_schema.py` compares the two).
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal

from job.errors import SpecError
from job.export.kinds import asked_for, kind_of, variant_of
from job.host.records import build
from job.spec.adapters import CombineSpec, WeightedSpec
from job.spec.defaults import job_schema
from job.spec.identity import expanded, run_id_of
from job.spec.method_options import DpoSpec, GrpoSpec, KtoSpec, OrpoSpec, SimpoSpec
from job.spec.resolved import resolve
from job.spec.rules import cross_faults
from job.spec.sections import JudgeSpec, OutputSpec, PromptSpec, ResourcesSpec, TaskSpec
from job.spec.strict import faults_of_schema, inspect_json, natural, one_per_place, unsound_places

GENERAL = "general"  # instead of sources: the general rows that come with tunejob

Json = dict[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    source: str
    precision: Literal["4bit", "8bit", "16bit", "full"]
    merge_base: str | None
    adapter: str | None
    adapters: tuple[WeightedSpec, ...] | None
    combine: CombineSpec | None
    max_seq_length: int
    backend: Literal["unsloth", "peft"]

    @property
    def given(self) -> list[tuple[str, str]]:
        """Pointer and address of each adapter that it names."""
        one = [("/model/adapter", self.adapter)] if self.adapter else []
        return one + [(f"/model/adapters/{i}/adapter", each.adapter) for i, each in enumerate(self.adapters or ())]


@dataclass(frozen=True)
class TemplateSpec:
    system: str | None
    user: str
    assistant: str


@dataclass(frozen=True)
class SourceSpec:
    source: str
    format: Literal[
        "messages", "sharegpt", "alpaca", "prompt_completion", "text", "template", "preference", "kto", "prompt_only"
    ]
    split: str
    subset: str | None
    columns: dict[str, str]
    template: TemplateSpec | None
    limit: int | None
    weight: float


@dataclass(frozen=True)
class HeldOutSpec:
    fraction: float | None
    rows: int | None
    sources: tuple[SourceSpec, ...] | None


@dataclass(frozen=True)
class ReplaySpec:
    """General rows that are mixed into the training: `fraction` of its sequences."""

    fraction: float
    sources: tuple[SourceSpec, ...] | Literal["general"]


@dataclass(frozen=True)
class DataSpec:
    train: tuple[SourceSpec, ...]
    held_out: HeldOutSpec | Literal["auto", False]
    chat_template: str
    train_on: Literal["responses", "all"]
    packing: bool
    shuffle: bool
    max_untrained_fraction: float
    replay: ReplaySpec | None = None

    @property
    def held_out_sources(self) -> tuple[SourceSpec, ...] | None:
        """Sources of their own, where the spec names some."""
        return self.held_out.sources if isinstance(self.held_out, HeldOutSpec) else None


@dataclass(frozen=True)
class LoraSpec:
    r: int
    alpha: float
    dropout: float
    targets: str | tuple[str, ...]
    modules_to_save: tuple[str, ...]
    rslora: bool
    dora: bool
    bias: Literal["none", "all", "lora_only"]
    init: Literal["default", "gaussian"]
    seed: int


@dataclass(frozen=True)
class EarlyStoppingSpec:
    patience: int
    min_delta: float


@dataclass(frozen=True)
class TrainingSpec:
    """`dpo`, `orpo`, `simpo`, `kto`, `grpo`: where that is the `method`."""

    method: Literal["sft", "dpo", "orpo", "simpo", "kto", "grpo"]
    dpo: DpoSpec | None
    orpo: OrpoSpec | None
    simpo: SimpoSpec | None
    kto: KtoSpec | None
    grpo: GrpoSpec | None
    epochs: float | None
    max_steps: int | None
    batch_size: int
    gradient_accumulation_steps: int
    micro_batch: Literal["auto"] | int
    learning_rate: float
    lr_scheduler: str
    warmup_steps: int | None
    warmup_ratio: float | None
    optimizer: str
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float
    seed: int
    logging_steps: int
    gradient_checkpointing: Literal["auto", "unsloth"] | bool
    compute: Literal["auto", "stock", "fp8"]
    eval_steps: int | None
    eval_batch_size: int
    early_stopping: EarlyStoppingSpec | None
    keep: Literal["last", "best"]


@dataclass(frozen=True)
class GateSpec:
    """Bounds on one metric; the last two compare it with the base model's. `of` names what they are to hold for,
    None: the trained model and everything that is delivered.
    """

    metric: str
    of: tuple[str, ...] | None
    at_least: float | None
    at_most: float | None
    gain_at_least: float | None
    rise_at_most: float | None

    def holds_for(self, name: str) -> bool:
        """Whether it is about `name`: "trained", "adapter" or the name of an export."""
        return self.of is None or name in self.of or name.partition("-")[0] in self.of


@dataclass(frozen=True)
class ForgettingSpec:
    """General rows whose loss is measured before and after."""

    sources: tuple[SourceSpec, ...] | Literal["general"]


@dataclass(frozen=True)
class EvaluationSpec:
    prompts: tuple[str | PromptSpec, ...]
    max_new_tokens: int
    exact_match_rows: int
    metrics: tuple[str, ...]
    regex: str | None
    json_schema: dict[str, Any] | None
    choices: tuple[str, ...] | None
    choices_column: str | None
    max_minutes: float | None
    forgetting: ForgettingSpec | None
    judge: JudgeSpec | None
    tasks: tuple[TaskSpec, ...] | None
    gates: tuple[GateSpec, ...]


@dataclass(frozen=True)
class GgufLimitSpec:
    type: str
    kl: float | None
    perplexity_rise: float | None


@dataclass(frozen=True)
class ExportLimitsSpec:
    merged_logits: float
    merged_kl: float
    merged_4bit_kl: float
    gguf: tuple[GgufLimitSpec, ...]


@dataclass(frozen=True)
class ExportSpec:
    merged: tuple[Literal["16bit", "4bit"], ...]
    merge_onto: Literal["auto", "trained", "original"]
    gguf: tuple[str, ...]
    lora_gguf: Literal["f32", "f16", "bf16", "q8_0"] | None
    imatrix: bool
    imatrix_tokens: int
    check_tokens: int
    modelfile: bool
    card: bool
    limits: ExportLimitsSpec

    @property
    def converts(self) -> bool:
        """Whether llama.cpp's converter has anything to do."""
        return bool(self.gguf or self.lora_gguf)


@dataclass(frozen=True)
class JobSpec:
    version: int
    name: str
    model: ModelSpec
    data: DataSpec
    lora: LoraSpec | None
    training: TrainingSpec
    evaluation: EvaluationSpec
    export: ExportSpec
    tracking: tuple[str, ...]
    resources: ResourcesSpec
    output: OutputSpec
    resolved: Json = dataclasses.field(repr=False, compare=False)

    @property
    def sources(self) -> list[tuple[SourceSpec, str]]:
        """Every source of rows that the spec names, with its pointer."""
        replay, forgetting = self.data.replay, self.evaluation.forgetting
        named = {
            "/data/train": self.data.train,
            "/data/held_out/sources": self.data.held_out_sources,
            "/data/replay/sources": replay.sources if replay else None,
            "/evaluation/forgetting/sources": forgetting.sources if forgetting else None,
        }
        return [
            (source, f"{pointer}/{index}")
            for pointer, sources in named.items()
            for index, source in enumerate(sources if isinstance(sources, tuple) else ())
        ]

    @property
    def artefacts(self) -> list[str]:
        """What is asked for beside what the training leaves, in the order in which it is made."""
        return asked_for(dataclasses.asdict(self.export), self.lora is None)

    @property
    def needs_merge(self) -> bool:
        """Whether anything is made of merged weights."""
        return bool(asked_for(dataclasses.asdict(self.export), whole=False))

    def limits(self, artefact: str) -> dict[str, float]:
        """Of its figures, by their names; what is beyond is refused."""
        return kind_of(artefact).limits(dataclasses.asdict(self.export.limits), variant_of(artefact))

    @property
    def run_id(self) -> str:
        """The same work, the same id."""
        return run_id_of(self.resolved)


def parse_spec(raw: bytes) -> JobSpec:
    """A job spec from its bytes.

    Raises `SpecError` with every fault found (not only the first), each with its JSON pointer.
    """
    document, faults = inspect_json(raw)
    faults = one_per_place(faults + faults_of_schema(document, job_schema()))
    faults += cross_faults(document, unsound_places(document, job_schema(), faults))
    faults.sort(key=lambda fault: natural(fault.where))
    if faults:
        raise SpecError(*faults)
    resolved = expanded(resolve(document))
    return typing.cast(JobSpec, build(JobSpec, resolved | {"resolved": resolved}, absent_is_none=True))
