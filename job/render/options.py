"""What a rendered file needs to know besides the spec."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from job import __version__
from job.errors import Fault, SpecError
from job.spec import JobSpec
from job.spec.wording import show

IMAGE = f"ghcr.io/tunejob/tunejob:{__version__}"
# As docker, Kubernetes and shells take them; no dash in front, which would be an option.
IMAGES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
NAMES = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
PARAMETERS = re.compile(r"([0-9]+(?:\.[0-9]+)?)([bBmM])")
UNITS = {"b": 10**9, "m": 10**6}
DIGEST_DIGITS = 10
NAME_CHARACTERS = 48  # JobSet appends "-node-0-0-" and five more, and takes 63 in all


@dataclass(frozen=True)
class Options:
    """`name`, `namespace` and `queue` are Kubernetes names; `parameters` is the number of weights of the base model."""

    image: str = IMAGE
    name: str | None = None
    namespace: str | None = None
    queue: str = "tunejob"
    parameters: int | None = None


def options(
    image: str | None, name: str | None, namespace: str | None, queue: str, parameters: str | None, gpus: int
) -> Options:
    """Options from their text. Raises `SpecError` with every one that is wrong."""
    image = image or IMAGE
    faults = []
    if not IMAGES.fullmatch(image):
        faults.append(
            Fault(
                "--image is not the reference of an image",
                found=show(image),
                expected="name, name:tag or name@sha256:digest",
            )
        )
    for option, value in (("--name", name), ("--namespace", namespace), ("--queue", queue)):
        if value is not None and not NAMES.fullmatch(value):
            expected = "lower-case letters, digits and hyphens, at most 63"
            faults.append(Fault(f"{option} is not a name of Kubernetes", found=show(value), expected=expected))
    if gpus != 1:
        hint = "Several GPUs come in a later version; a larger model may fit one larger GPU"
        faults.append(Fault("a job runs on one GPU", found=f"--gpus {gpus}", expected="--gpus 1", hint=hint))
    if parameters is not None and not PARAMETERS.fullmatch(parameters):
        faults.append(
            Fault(
                "--parameters is not a size", found=show(parameters), expected="a number of weights, such as 8b or 135m"
            )
        )
    if faults:
        raise SpecError(*faults)
    return Options(image, name, namespace, queue, parameters_in(parameters))


def parameters_in(text: str | None) -> int | None:
    """`8b` → 8,000,000,000."""
    found = PARAMETERS.fullmatch(text or "")
    return int(float(found[1]) * UNITS[found[2].lower()]) if found else None


def digest(raw: bytes) -> str:
    """Short hash of a spec, so that another spec gets other objects and the same spec the same ones."""
    return hashlib.sha256(raw).hexdigest()[:DIGEST_DIGITS]


def job_name(spec: JobSpec, raw: bytes, chosen: str | None) -> str:
    """Name of the job and of what holds its spec: the one chosen, else the spec's, with the spec's hash.

    It begins with a letter, as the names of JobSets, TrainJobs and dstack's tasks have to.
    """
    name = chosen or spec.name
    name = name if name[0].isalpha() else f"t-{name}"
    return f"{name[: NAME_CHARACTERS - DIGEST_DIGITS - 1].rstrip('-')}-{digest(raw)}"
