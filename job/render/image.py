"""The image of the run, and what a file says of it. No release is out yet, so it is one that somebody has built."""

from __future__ import annotations

from collections.abc import Sequence

from job import __version__
from job.preview.image_parts import PARTS

IMAGE = f"tunejob:{__version__}"


def is_local(image: str) -> bool:
    """Whether no registry is named, so that the image is only where it was built."""
    return "@" not in image and ("/" not in image or image.startswith("localhost/"))


def registry(image: str) -> str:
    """The registry that an image is pulled from, as `docker login` names it; a placeholder where none is named yet."""
    if is_local(image):
        return "REGISTRY"
    host = image.partition("/")[0]
    return host if "." in host or ":" in host else "https://index.docker.io/v1/"


def build(image: str, engine: str = "docker", parts: Sequence[str] = ()) -> str:
    """The command that makes it, in a clone of tunejob."""
    arguments = "".join(f"--build-arg {PARTS[part]}=1 " for part in parts if part in PARTS)
    return f"{engine} build {arguments}-t {image} ."


def words_here(image: str, engine: str = "docker", parts: Sequence[str] = ()) -> list[str]:
    """For the head of a file that runs on the machine where images are built."""
    if is_local(image):
        return [
            f"Image: {image}, made on this machine by `{build(image, engine, parts)}` in a clone of tunejob.",
            "It is not pulled: no release is out yet.",
        ]
    return [f"Image: {image}, pulled from its registry where it is not here yet.", *_tag(image)]


def words_for_nodes(image: str, parts: Sequence[str] = ()) -> list[str]:
    """For the head of a file that runs in a cluster."""
    if is_local(image):
        return [
            f"Image: {image}, which is only where `{build(image, parts=parts)}` was run in a clone of tunejob.",
            "No release is out yet, and a cluster cannot reach it there: push it to a registry and render with",
            "--image REGISTRY/NAME@sha256:DIGEST, or load it into every node",
            f"(kind load docker-image {image}; minikube image load {image}).",
        ]
    said = "pulled by the node from its registry (--pull-secret NAME for a private one)"
    return [f"Image: {image}, {said}.", *_tag(image)]


def words_for_rented(image: str, private: str) -> list[str]:
    """For the head of a file that runs on a rented machine. `private`: what a private registry takes there."""
    return [f"Image: {image}, pulled by the rented machine from its registry. {private}", *_tag(image)]


def _tag(image: str) -> list[str]:
    return [] if "@sha256:" in image else ["A tag may name another image tomorrow; NAME@sha256:DIGEST does not."]
