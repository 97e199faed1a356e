"""What the plan says of a run that is under way: the same reckoning, with its own rows, on the GPU that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from job.data.build import Prepared
from job.data.figures import sizes
from job.host.planned import PlannedRun
from job.plan.cards import card_of
from job.plan.gpu_memory import GPU_CONTEXT_BYTES
from job.plan.machine import needs_by_stage
from job.plan.model_size import size_of_base
from job.preview.evaluated import evaluated, question_tokens, read_tokens
from job.preview.reckoning import on_card, scheduler
from job.source import FetchedModel
from job.spec import JobSpec

NOT_RECKONED = "data"  # a plan takes what it has just seen
BENCHMARKED = ("baseline", "evaluate", "merge")  # by documents that are not here yet


def expected(spec: JobSpec, base: FetchedModel, prepared: Prepared, device: Mapping[str, Any]) -> PlannedRun:
    """`device`: as `job.host.stats.describe_device` has it. Of a CPU the plan knows the disk alone, of a GPU that is
    none of its own neither its memory in training nor the times.
    """
    size = size_of_base(spec, base)
    needs = needs_by_stage(spec, size)
    disk = max(need.disk_bytes for need in needs)
    if device["kind"] == "cpu":
        return PlannedRun(disk_peak_bytes=disk)
    key = card_of(device["name"], device["total_memory_bytes"])
    host = max(need.ram_bytes for need in needs)
    if key is None:
        return PlannedRun(host_peak_bytes=host, disk_peak_bytes=disk)
    asked = evaluated(spec.evaluation, question_tokens(spec.evaluation, prepared), read_tokens(prepared))
    on = on_card(spec, size, scheduler(spec, sizes(prepared.train)[0].tolist(), 1.0), 0.0, key, {}, asked)
    unknown = BENCHMARKED if spec.evaluation.tasks else ()
    stages = {stage.name: round(stage.seconds, 3) for stage in on.stages if stage.name not in (NOT_RECKONED, *unknown)}
    return PlannedRun(key, on.needed.expected - GPU_CONTEXT_BYTES, host, disk, stages)
