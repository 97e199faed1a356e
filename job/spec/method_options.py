"""Settings of single training methods; the schema's objects of their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from job.spec.sections import ScoringSpec

VLLM_SHARE = 0.3  # of a GPU's memory where the spec has none, as in TRL


@dataclass(frozen=True)
class DpoSpec:
    loss_type: Literal[
        "sigmoid", "hinge", "ipo", "robust", "exo_pair", "sigmoid_norm", "nca_pair", "apo_zero", "apo_down"
    ]
    beta: float
    label_smoothing: float
    sft_weight: float


@dataclass(frozen=True)
class OrpoSpec:
    beta: float


@dataclass(frozen=True)
class SimpoSpec:
    beta: float
    gamma: float
    sft_weight: float


@dataclass(frozen=True)
class KtoSpec:
    beta: float
    desirable_weight: float
    undesirable_weight: float


@dataclass(frozen=True)
class RewardSpec:
    """What an answer is worth by one measure; options of others stay away."""

    metric: Literal[
        "exact_match", "contains", "regex", "token_f1", "rouge_1", "rouge_2", "rouge_l", "json_valid", "json_fields",
        "tool_names", "tool_calls", "format", "length", "judge", "file",
    ]  # fmt: skip
    weight: float
    regex: str | None
    json_schema: dict[str, Any] | None
    at_most: int | None
    judge: ScoringSpec | None
    file: str | None


@dataclass(frozen=True)
class GrpoSpec:
    rewards: tuple[RewardSpec, ...]
    group_size: int
    max_new_tokens: int
    temperature: float
    top_p: float
    beta: float
    epsilon: float
    epsilon_high: float
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"]
    scale_rewards: Literal["group", "batch", "none"]
    mask_cut_answers: bool
    use_vllm: bool
    vllm_gpu_memory_utilization: float | None

    @property
    def vllm_share(self) -> float:
        """Of a GPU's memory, what vLLM has of it; 0 without."""
        return (self.vllm_gpu_memory_utilization or VLLM_SHARE) if self.use_vllm else 0.0

    @property
    def files(self) -> dict[str, str]:
        """Pointer and path of each reward of one's own."""
        named = {f"/training/grpo/rewards/{number}/file": reward.file for number, reward in enumerate(self.rewards)}
        return {pointer: file for pointer, file in named.items() if file}
