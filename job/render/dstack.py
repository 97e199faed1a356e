"""A task of dstack."""

from __future__ import annotations

from job.host.memory import GIB
from job.render.image import words_for_rented
from job.render.pod import STOP_SECONDS
from job.render.rendering import Rendering
from job.render.shell import COMMAND, SPEC_PATH, needed_secrets, write_spec
from job.render.text import documents

IMAGE_BYTES = 20 * GIB  # it is on the same disk
NAME_CHARACTERS = 41  # dstack's limit
RETRY_HOURS = 24


def dstack(task: Rendering) -> str:
    """dstack knows no exit codes: it retries where a machine is missing or taken away, and leaves failures alone."""
    needs = task.needs
    asked = " ".join(f"{name}=..." for name in needed_secrets(task.spec))
    header = [
        f"export {asked} && dstack apply -f FILE",
        "-e NAME passes on more variables, such as HF_TOKEN or AWS_ENDPOINT_URL",
        *words_for_rented(task.options.image, "A private one needs registry_auth in this file."),
        task.deadline.words(),
        *needs.words(),
    ]
    return documents(
        header,
        {
            "type": "task",
            "name": _name(task.name),
            "image": task.options.image,
            "env": [
                "AWS_EC2_METADATA_DISABLED=true",
                f"TUNEJOB_STOP_SECONDS={STOP_SECONDS}",
                *needed_secrets(task.spec),
            ],
            "commands": [write_spec(task), f"exec {COMMAND} run {SPEC_PATH}"],
            "resources": {
                "cpu": f"{task.cores}..",
                "memory": f"{needs.memory_bytes // GIB}GB..",
                "shm_size": f"{needs.shm_bytes // GIB}GB",
                "gpu": {"vendor": "nvidia", "memory": f"{needs.gpu_gb}GB..", "count": needs.gpus},
                "disk": f"{(needs.ephemeral_bytes + IMAGE_BYTES) // GIB}GB..",
            },
            "spot_policy": "auto",
            "retry": {"on_events": ["no-capacity", "interruption"], "duration": f"{RETRY_HOURS}h"},
            "max_duration": f"{task.deadline.hours}h",
        },
    )


def _name(name: str) -> str:
    """The hash at the end stays."""
    head, _, tail = name.rpartition("-")
    return name if len(name) <= NAME_CHARACTERS else f"{head[: NAME_CHARACTERS - len(tail) - 1].rstrip('-')}-{tail}"
