"""The training methods by name."""

from job.training.methods.dpo import DPO
from job.training.methods.grpo import GRPO
from job.training.methods.kto import KTO
from job.training.methods.orpo import ORPO
from job.training.methods.record import Method
from job.training.methods.sft import SFT
from job.training.methods.simpo import SIMPO

METHODS: dict[str, Method] = {method.name: method for method in (SFT, DPO, ORPO, SIMPO, KTO, GRPO)}

__all__ = ["METHODS", "Method"]
