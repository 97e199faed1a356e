"""From the bytes of a spec to a `JobSpec`."""

from job.spec.model import (
    CheckpointsSpec,
    DataSpec,
    EvaluationSpec,
    GateSpec,
    HeldOutSpec,
    HubSpec,
    JobSpec,
    LoraSpec,
    ModelSpec,
    SourceSpec,
    TrainingSpec,
    job_schema,
    parse_spec,
)

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
    "TrainingSpec",
    "job_schema",
    "parse_spec",
]
