"""Where pods, Jobs and containers are in the kinds that are used here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tests.k8s.render import Document

UNITS = {
    "m": Decimal("0.001"),
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


@dataclass(frozen=True)
class Pod:
    """A pod template; `job` is the specification of the Job that makes its pods, None for a Deployment's."""

    where: str
    labels: dict[str, str]
    spec: Document
    job: Document | None
    main: str = "tunejob"

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def tune(self) -> Document:
        return next(container for container in self.spec["containers"] if container["name"] == self.main)


def pods(documents: list[Document]) -> Iterator[Pod]:
    for document in documents:
        where = f"{document['kind']}/{document['metadata']['name']}"
        for name, holder in _holders(document):
            template = holder["template"]
            job = None if document["kind"] == "Deployment" else holder
            main = "node" if document["kind"] == "ClusterTrainingRuntime" else "tunejob"
            yield Pod(where + name, template["metadata"].get("labels", {}), template["spec"], job, main)


def _holders(document: Document) -> Iterator[tuple[str, Document]]:
    spec = document.get("spec", {})
    match document["kind"]:
        case "Job" | "Deployment":
            yield "", spec
        case "CronJob":
            yield "", spec["jobTemplate"]["spec"]
        case "JobSet":
            yield from _replicated(spec)
        case "ClusterTrainingRuntime":
            yield from _replicated(spec["template"]["spec"])


def _replicated(spec: Document) -> Iterator[tuple[str, Document]]:
    for job in spec["replicatedJobs"]:
        yield f"/{job['name']}", job["template"]["spec"]


def quantity(text: str | int) -> Decimal:
    """A Kubernetes quantity in its base unit: cores, bytes, pieces."""
    digits = str(text).rstrip("kmKMGTi")
    return Decimal(digits) * UNITS[str(text)[len(digits) :]]


def walk(value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below, with its JSON pointer."""
    yield pointer, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from walk(child, f"{pointer}/{key}")
