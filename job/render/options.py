"""What a rendered file needs to know besides the spec."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from job.errors import Fault, SpecError
from job.plan.model_size import UNITS
from job.render.deadline import MOST_HOURS, Deadline, deadline_in
from job.render.egress import Egress, egress_in
from job.render.image import IMAGE
from job.spec import JobSpec
from job.spec.wording import show

# As docker, Kubernetes and shells take them; no dash in front, which would be an option.
IMAGES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
NAMES = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
PARAMETERS = re.compile(r"([0-9]+(?:\.[0-9]+)?)([bBmM])")
# The name of an annotation after an optional domain, and its value.
ANNOTATIONS = re.compile(
    r"((?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)=([ -~]{1,1024})"
)
SOURCES = re.compile(r"(https://[A-Za-z0-9.-]+(?::[0-9]+)?/[A-Za-z0-9._/~-]+)@([A-Za-z0-9][A-Za-z0-9._/-]{0,200})")
DIGEST_DIGITS = 10
NAME_CHARACTERS = 48  # JobSet appends "-node-0-0-" and five more, and takes 63 in all
MOST_CORES, MOST_GPUS = 1024, 8
# Options that only some targets know: the others refuse them.
PARTICULAR = ("namespace", "queue", "pull_secret", "service_account", "annotation", "egress", "deadline", "source")

Found = TypeVar("Found")


@dataclass(frozen=True)
class RenderArguments:
    """The options as they were written, by the names of the arguments of `tunejob render`."""

    image: str | None = None
    image_with: Sequence[str] = ()
    name: str | None = None
    namespace: str | None = None
    queue: str | None = None
    pull_secret: str | None = None
    service_account: str | None = None
    annotation: Sequence[str] = ()
    egress: Sequence[str] = ()
    cpu: int | None = None
    deadline: str | None = None
    source: str | None = None
    parameters: str | None = None
    gpus: int | None = None


@dataclass(frozen=True)
class GitSource:
    """A git repository of tunejob and the commit, tag or branch in it."""

    url: str
    ref: str


@dataclass(frozen=True)
class RenderOptions:
    """`cpu` is in cores, `parameters` the number of weights of the base model, `gpus` those of the
    machine; names are those of Kubernetes.
    """

    image: str = IMAGE
    image_with: tuple[str, ...] = ()
    name: str | None = None
    namespace: str | None = None
    queue: str | None = None
    pull_secret: str | None = None
    service_account: str | None = None
    annotation: dict[str, str] = field(default_factory=dict)
    egress: tuple[Egress, ...] = ()
    cpu: int | None = None
    deadline: Deadline | None = None
    source: GitSource | None = None
    parameters: int | None = None
    gpus: int | None = None

    def particular(self) -> list[str]:
        """Those of the options that were given which only some targets know."""
        return [name for name in PARTICULAR if getattr(self, name)]


def flag(name: str) -> str:
    """`pull_secret` → `--pull-secret`."""
    return f"--{name.replace('_', '-')}"


def options(asked: RenderArguments) -> RenderOptions:
    """Options from their text. Raises `SpecError` with every one that is wrong."""
    faults: list[Fault] = []
    image = asked.image or IMAGE
    if not IMAGES.fullmatch(image):
        expected = "name, name:tag or name@sha256:digest"
        faults.append(Fault("--image is not the reference of an image", found=show(image), expected=expected))
    for name in ("name", "namespace", "queue", "pull_secret", "service_account"):
        value = getattr(asked, name)
        if value is not None and not NAMES.fullmatch(value):
            expected = "lower-case letters, digits and hyphens, at most 63"
            faults.append(Fault(f"{flag(name)} is not a name of Kubernetes", found=show(value), expected=expected))
    for name, most, unit in (
        ("cpu", MOST_CORES, "cores"),
        ("gpus", MOST_GPUS, "GPUs"),
    ):
        value = getattr(asked, name)
        if value is not None and not 0 < value <= most:
            faults.append(Fault(f"{flag(name)} is out of range", found=str(value), expected=f"1 to {most} {unit}"))
    if asked.parameters is not None and not PARAMETERS.fullmatch(asked.parameters):
        expected = "a number of weights, such as 8b or 135m"
        faults.append(Fault("--parameters is not a size", found=show(asked.parameters), expected=expected))
    notes = [found for text in asked.annotation if (found := _read(_annotation, "--annotation", text, faults))]
    ranges = [egress for text in asked.egress if (egress := _read(egress_in, "--egress", text, faults))]
    source = None if asked.source is None else _read(_source, "--source", asked.source, faults)
    deadline = None if asked.deadline is None else _read(deadline_in, "--deadline", asked.deadline, faults)
    if faults:
        raise SpecError(*faults)
    return RenderOptions(
        image, tuple(sorted(set(asked.image_with))), asked.name, asked.namespace, asked.queue, asked.pull_secret,
        asked.service_account, dict(notes), tuple(ranges), asked.cpu, deadline, source,
        parameters_in(asked.parameters), asked.gpus,
    )  # fmt: skip


EXPECTED = {
    "--deadline": (
        f"1 to {MOST_HOURS} hours, or the path of a plan",
        "`tunejob plan spec.json --json > plan.json` writes one",
    ),
    "--annotation": ("NAME=VALUE, such as eks.amazonaws.com/role-arn=arn:aws:iam::111122223333:role/tunejob", ""),
    "--egress": (
        "addresses and a TCP port, such as 10.0.0.0/8:9000 or 10.1.2.3:9000",
        "A NetworkPolicy knows no names: `getent hosts NAME` says its addresses",
    ),
    "--source": (
        "https://HOST/PATH@COMMIT",
        "A repository of tunejob, such as your clone pushed to a fork; `git rev-parse HEAD` says the commit",
    ),
}


def _read(reader: Callable[[str], Found], option: str, text: str, faults: list[Fault]) -> Found | None:
    """What `reader` makes of the option's text; None after a fault."""
    try:
        return reader(text)
    except ValueError as error:
        expected, hint = EXPECTED[option]
        faults.append(Fault(f"{option} {error}", found=show(text), expected=expected, hint=hint))
        return None


def _annotation(text: str) -> tuple[str, str]:
    if not (found := ANNOTATIONS.fullmatch(text)):
        raise ValueError("is not an annotation")
    return found[1], found[2]


def _source(text: str) -> GitSource:
    if not (found := SOURCES.fullmatch(text)):
        raise ValueError("is not a place in a git repository")
    return GitSource(found[1], found[2])


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
