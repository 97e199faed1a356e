"""`tunejob render`: a spec as the file that runs it somewhere. One module a target; the pod of `pod.py` is the source
of them all.
"""

from __future__ import annotations

from collections.abc import Callable

from job.render.actions import actions
from job.render.compose import compose
from job.render.docker import docker, podman
from job.render.dstack import dstack
from job.render.jobset import jobset
from job.render.kubernetes import job, kueue
from job.render.options import Options
from job.render.rendering import Rendering, context
from job.render.rented import runpod, vast
from job.render.skypilot import skypilot
from job.render.trainjob import trainjob

TARGETS: dict[str, Callable[[Rendering], str]] = {
    "docker": docker,
    "podman": podman,
    "compose": compose,
    "job": job,
    "kueue": kueue,
    "jobset": jobset,
    "trainjob": trainjob,
    "skypilot": skypilot,
    "dstack": dstack,
    "runpod": runpod,
    "vast": vast,
    "actions": actions,
}


def render(raw: bytes, target: str, options: Options) -> str:
    """The file that runs the spec `raw` at `target`, the spec inside it byte for byte.

    Raises `SpecError` for a spec that is not valid or that the place cannot run, `CapacityError` for one that fits no
    GPU.
    """
    return TARGETS[target](context(raw, options))
