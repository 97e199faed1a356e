"""Everything that a run can fail with."""

from job.errors.tree import (
    DISK_FULL,
    PASSING_STATUS,
    TREE,
    VENDOR,
    CapacityError,
    DeviceError,
    Fault,
    GateError,
    InputError,
    Interrupted,
    JobError,
    PolicyError,
    SpecError,
    TransientError,
    classify,
    disk_is_full,
)

__all__ = [
    "DISK_FULL",
    "PASSING_STATUS",
    "TREE",
    "VENDOR",
    "CapacityError",
    "DeviceError",
    "Fault",
    "GateError",
    "InputError",
    "Interrupted",
    "JobError",
    "PolicyError",
    "SpecError",
    "TransientError",
    "classify",
    "disk_is_full",
]
