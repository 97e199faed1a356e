"""A task of SkyPilot. Its `image_id: docker:…` installs packages as root in the container, which this image refuses;
so the machine's own docker runs it, as every GPU machine image of SkyPilot's clouds has it.
"""

from __future__ import annotations

from job.errors import JobError
from job.host.memory import GIB
from job.render.docker import script
from job.render.image import words_for_rented
from job.render.pod import retryable_codes
from job.render.rendering import Rendering
from job.render.shell import SECRETS, variables
from job.render.text import documents

# By the names of SkyPilot's catalogue, with what they have in units of 10^9 bytes; the cheapest that is free is taken.
ACCELERATORS = {
    "L4": 24,
    "A10G": 24,
    "RTX4090": 24,
    "A100": 40,
    "L40S": 48,
    "A6000": 48,
    "A100-80GB": 80,
    "H100": 80,
    "H200": 141,
    "B200": 180,
}
SYSTEM_BYTES = 40 * GIB  # the machine's system and the image
ROOT = 'docker info >/dev/null 2>&1 || docker() { sudo --preserve-env docker "$@"; }\n'


def skypilot(task: Rendering) -> str:
    needs = task.needs
    own_retries = [code for code in retryable_codes() if code != JobError.exit_code]
    names = variables(task.spec)
    header = [
        "sky jobs launch FILE --secret AWS_ACCESS_KEY_ID --secret AWS_SECRET_ACCESS_KEY --secret HF_TOKEN    (those you need)",  # noqa: E501
        "A lost machine and the exit codes below start it again, anywhere; what is stored already is not made again.",
        *words_for_rented(task.options.image, "It does so without a login."),
        *needs.words(),
    ]
    return documents(
        header,
        {
            "name": task.name,
            "resources": {
                "accelerators": {name: needs.gpus for name, gb in ACCELERATORS.items() if gb >= needs.gpu_gb},
                "cpus": f"{task.cores}+",
                "memory": f"{(needs.memory_bytes + 2 * GIB) // GIB}+",
                "disk_size": (needs.ephemeral_bytes + SYSTEM_BYTES) // GIB,
                "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": own_retries},
            },
            "envs": {name: "" for name in names if name not in SECRETS},
            "secrets": {name: "" for name in names if name in SECRETS},
            "run": ROOT + script(task, "docker"),
        },
    )
