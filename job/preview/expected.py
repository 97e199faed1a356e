"""What the plan says of a run that is under way: the same reckoning, with its own rows, on the GPU that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from job.host.foreseen import Foreseen
from job.plan.cards import card_of
from job.plan.gpu_memory import GPU_CONTEXT_BYTES, gpu_memory
from job.plan.machine import needs_by_stage
from job.plan.model_size import size_of_fetched
from job.preview.reckoning import on_card, scheduler
from job.preview.rows import sizes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from job.data.build import Prepared
    from job.source import FetchedModel
    from job.spec import JobSpec

NOT_RECKONED = "data"  # a plan takes what it has just seen


def expected(spec: JobSpec, base: FetchedModel, prepared: Prepared, device: Mapping[str, Any]) -> Foreseen:
    """`device`: as `job.host.stats.describe_device` has it. Of a CPU the plan knows the disk alone, of a GPU that is
    none of its own the memory but not the time.
    """
    size = size_of_fetched(base.path, base.weight_bytes, local="://" not in spec.model.source)
    needs = needs_by_stage(spec, size)
    disk = max(need.disk_bytes for need in needs)
    if device["kind"] == "cpu":
        return Foreseen(disk_peak_bytes=disk)
    scheduled = scheduler(spec, sizes(prepared.train)[0].tolist(), 1.0)
    key = card_of(device["name"], device["total_memory_bytes"])
    on = on_card(spec, size, scheduled, 0.0, key, {}) if key else None
    rows, packing = spec.training.batch_size, spec.data.packing
    needed = on.needed if on else gpu_memory(spec, size, rows, scheduled(rows, packing).longest_tokens)
    return Foreseen(
        gpu=key,
        gpu_peak_bytes=needed.expected - GPU_CONTEXT_BYTES,
        host_peak_bytes=max(need.ram_bytes for need in needs),
        disk_peak_bytes=disk,
        stage_seconds={
            stage.name: round(stage.seconds, 3) for stage in (on.stages if on else ()) if stage.name != NOT_RECKONED
        },
    )
