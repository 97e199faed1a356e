"""Settings of single training methods; the schema's objects of their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
class KtoSpec:
    beta: float
    desirable_weight: float
    undesirable_weight: float
