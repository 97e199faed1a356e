"""`tunejob render`: a spec as the file that runs it somewhere. One module a target; the pod of `pod.py` is the source
of them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from job.render.actions import actions
from job.render.compose import compose
from job.render.docker import docker, podman
from job.render.dstack import dstack
from job.render.jobset import jobset
from job.render.kubernetes import job, kueue
from job.render.options import Options
from job.render.rendering import Rendering, context, require_remote
from job.render.skypilot import skypilot
from job.render.trainjob import trainjob


@dataclass(frozen=True)
class Target:
    """A place that can run a spec; a new one is a module here and a line in `TARGETS`."""

    render: Callable[[Rendering], str]  # the file that runs it there
    takes_paths: bool = False  # whether what is on this machine can be read and written there


TARGETS = {
    "docker": Target(docker, takes_paths=True),
    "podman": Target(podman, takes_paths=True),
    "compose": Target(compose),
    "job": Target(job),
    "kueue": Target(kueue),
    "jobset": Target(jobset),
    "trainjob": Target(trainjob),
    "skypilot": Target(skypilot),
    "dstack": Target(dstack),
    "actions": Target(actions),
}


def render(raw: bytes, target: str, options: Options) -> str:
    """The file that runs the spec `raw` at `target`, the spec inside it byte for byte.

    Raises `SpecError` for a spec that is not valid or that the place cannot run, `CapacityError` for one that fits no
    GPU.
    """
    place, task = TARGETS[target], context(raw, options)
    if not place.takes_paths:
        require_remote(task.spec)
    return place.render(task)
