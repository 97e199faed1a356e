"""`tunejob render`: a spec as the file that runs it somewhere. One module a target; all pods come from `pod.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from job.errors import Fault, InputError, SpecError
from job.preview.image_parts import missing
from job.render.actions import actions
from job.render.compose import compose
from job.render.docker import docker, podman
from job.render.dstack import dstack
from job.render.image import build, is_local, words_for_nodes
from job.render.jobset import jobset
from job.render.kubernetes import job, kueue
from job.render.machines import require_one
from job.render.options import RenderOptions, flag
from job.render.rendering import Rendering, context, require_gpus, require_remote
from job.render.skypilot import skypilot
from job.render.trainjob import trainjob


@dataclass(frozen=True)
class Target:
    """A place that can run a spec; a new one is a module here and a line in `TARGETS`."""

    render: Callable[[Rendering], str]  # the file that runs it there
    takes_paths: bool = False  # whether what is on this machine can be read and written there
    # Where an image of no registry may be: on the machine that renders, or loaded into the nodes.
    finds_image: Literal["here", "loaded", "nowhere"] = "here"
    starts_several: bool = False  # machines of one run
    knows: frozenset[str] = frozenset()  # which of the `PARTICULAR` options mean something there


CLUSTER = frozenset({"namespace", "pull_secret", "service_account", "annotation", "egress"})
TIMED = CLUSTER | {"deadline"}
TARGETS = {
    "docker": Target(docker, takes_paths=True),
    "podman": Target(podman, takes_paths=True),
    "compose": Target(compose),
    "job": Target(job, finds_image="loaded", knows=TIMED),
    "kueue": Target(kueue, finds_image="loaded", knows=TIMED | {"queue"}),
    "jobset": Target(jobset, finds_image="loaded", starts_several=True, knows=TIMED),
    # The deadline is that of all specs' runtime
    "trainjob": Target(trainjob, finds_image="loaded", starts_several=True, knows=CLUSTER),
    "skypilot": Target(skypilot, finds_image="nowhere"),
    "dstack": Target(dstack, finds_image="nowhere", knows=frozenset({"deadline"})),
    "actions": Target(actions, finds_image="loaded", knows=TIMED | {"source"}),
}


def render(raw: bytes, target: str, options: RenderOptions) -> str:
    """The file that runs the spec `raw` at `target`, the spec inside it byte for byte.

    Raises `SpecError` for a spec that is not valid or that the place cannot run, and for options that mean nothing
    there, `InputError` for one that needs packages which the image lacks, `CapacityError` for one that fits no GPU.
    """
    if faults := [*_options_faults(target, options)]:
        raise SpecError(*faults)
    place, task = TARGETS[target], context(raw, options)
    if faults := [*missing(task.spec, options.image_with)]:
        raise InputError(*faults)
    if not place.takes_paths:
        require_remote(task.spec)
        require_gpus(task)
    if not place.starts_several:
        require_one(task, target)
    return place.render(task)


def _options_faults(target: str, options: RenderOptions) -> Iterator[Fault]:
    """Nothing that was asked for is dropped silently, and no machine is rented for an image that it cannot pull."""
    place = TARGETS[target]
    for name in options.particular():
        if name not in place.knows:
            others = ", ".join(other for other, known in TARGETS.items() if name in known.knows)
            yield Fault(f"--to {target} does not know {flag(name)}", hint=f"Leave it out; it is for --to {others}")
    if place.finds_image == "nowhere" and is_local(options.image):
        built = build(options.image, parts=options.image_with)
        yield Fault(
            f"--to {target} cannot reach an image of this machine",
            found=f"--image {options.image}",
            expected="--image REGISTRY/NAME@sha256:DIGEST",
            hint=f"No release is out yet: `{built}` in a clone of tunejob, and push it to a registry",
        )


def image_note(target: str, options: RenderOptions) -> str:
    """What has to be done before the image is where the target looks for it; empty where nothing has."""
    if TARGETS[target].finds_image != "loaded" or not is_local(options.image):
        return ""
    return " ".join(words_for_nodes(options.image, options.image_with))
