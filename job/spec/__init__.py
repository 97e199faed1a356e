"""From the bytes of a spec to a `JobSpec`."""

from job.spec.defaults import job_schema
from job.spec.model import (
    DataSpec,
    EvaluationSpec,
    GateSpec,
    HeldOutSpec,
    JobSpec,
    LoraSpec,
    ModelSpec,
    SourceSpec,
    TrainingSpec,
    parse_spec,
)
from job.spec.sections import CheckpointsSpec, HubSpec, TaskSpec

__all__ = [
    "CheckpointsSpec",
    "DataSpec",
    "EvaluationSpec",
    "GateSpec",
    "HeldOutSpec",
    "HubSpec",
    "JobSpec",
    "LoraSpec",
    "ModelSpec",
    "SourceSpec",
    "TaskSpec",
    "TrainingSpec",
    "job_schema",
    "parse_spec",
]
