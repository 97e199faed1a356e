"""The rendered files that are shipped: `python -m tests.elsewhere.examples` writes them again (`make examples`)."""

from __future__ import annotations

from pathlib import Path

from job.render import render
from job.render.options import RenderArguments, RenderOptions, options

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "job" / "render" / "examples"
SPECS = ROOT / "schemas" / "examples"
IMAGE = "registry.example.com/tunejob:0.1.0"
SOURCE = "https://git.example.com/tunejob@v0.1.0"
HERE = ("docker", "podman", "compose")  # targets whose image is made where they run
# File: the spec it is for, and the target.
EXAMPLES = {
    "compose.yaml": ("try-out", "compose"),
    "docker.sh": ("finetome-llama31-8b", "docker"),
    "podman.sh": ("finetome-llama31-8b", "podman"),
    "job.yaml": ("finetome-llama31-8b", "job"),
    "kueue.yaml": ("finetome-llama31-8b", "kueue"),
    "jobset.yaml": ("finetome-llama31-8b", "jobset"),
    "trainjob.yaml": ("finetome-llama31-8b", "trainjob"),
    "skypilot.yaml": ("finetome-llama31-8b", "skypilot"),
    "tunejob.dstack.yml": ("finetome-llama31-8b", "dstack"),
    "actions.yml": ("finetome-llama31-8b", "actions"),
}
BY_HAND = {"object-store.yaml", "cpu.yaml"}  # parts that are laid over compose.yaml


def asked(target: str) -> RenderOptions:
    image = None if target in HERE else IMAGE
    return options(RenderArguments(image=image, source=SOURCE if target == "actions" else None))


def rendered(name: str) -> str:
    spec, target = EXAMPLES[name]
    return render((SPECS / f"{spec}.json").read_bytes(), target, asked(target))


if __name__ == "__main__":
    for example in EXAMPLES:
        (FOLDER / example).write_text(rendered(example), "utf-8")
