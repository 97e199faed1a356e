"""A compose file with the job as its only service."""

from __future__ import annotations

from job.host.memory import GIB
from job.render.image import is_local, words_here
from job.render.pod import GRACE_SECONDS, STOP_SECONDS
from job.render.rendering import Rendering
from job.render.shell import COMMAND, SPEC_PATH, environment_words, variables, write_spec
from job.render.text import documents


def compose(task: Rendering) -> str:
    """The spec is in the command: compose copies inline `configs` into the container, which is read-only."""
    needs = task.needs
    command = f"{write_spec(task)} && exec {COMMAND} run {SPEC_PATH}"
    service = {
        "image": task.options.image,
        **({"pull_policy": "never"} if is_local(task.options.image) else {}),
        "entrypoint": ["/bin/sh", "-c"],
        "command": [command.replace("$", "$$")],  # $ begins a variable of compose
        "environment": {"AWS_EC2_METADATA_DISABLED": "true", "TUNEJOB_STOP_SECONDS": str(STOP_SECONDS)}
        | dict.fromkeys(variables(task.spec)),
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "volumes": ["/scratch", "/tmp"],  # noqa: S108 (anonymous volumes of the container)
        "shm_size": f"{needs.shm_bytes // GIB}g",
        "mem_limit": f"{needs.memory_bytes // GIB}g",
        **({"cpus": task.options.cpu} if task.options.cpu else {}),
        "stop_grace_period": f"{GRACE_SECONDS}s",
        "restart": "no",
        "deploy": {
            "resources": {
                "reservations": {"devices": [{"driver": "nvidia", "count": needs.gpus, "capabilities": ["gpu"]}]}
            }
        },
    }
    header = [
        "docker compose -f FILE up --exit-code-from tunejob        then: docker compose -f FILE down --volumes",
        *environment_words(task.spec),
        *words_here(task.options.image, parts=task.options.image_with),
        *needs.words(),
    ]
    return documents(header, {"name": task.name, "services": {"tunejob": service}})
