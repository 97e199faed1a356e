"""Machines of RunPod and Vast: a container on one GPU, which is paid until somebody ends it; so the container does
that itself.

Both are asked for as their own clients ask: RunPod by its REST API v2, Vast by the `vastai` command. Neither says how
it reads text in variables, so the spec travels in base64.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from job.errors import Interrupted
from job.plan.machine import GB, GIB
from job.render.pod import BACKOFF_LIMIT, STOP_SECONDS, hopeless_codes
from job.render.rendering import Rendering
from job.render.shell import COMMAND, SHELLCHECK, SPEC_PATH, spec_in_base64, variables
from job.render.text import comment, word

SPEC_VARIABLE = "TUNEJOB_SPEC"
PYTHON = "/opt/tunejob/bin/python"
IMAGE_BYTES = 20 * GIB  # it lies on the same disk
CUDA = "13.0"  # of the lock's torch (locks/cuda.txt): what the machine's driver has to know
# In RunPod's names; the smallest that is large enough is asked for.
RUNPOD_GPUS = {"NVIDIA L4": 24, "NVIDIA L40S": 48, "NVIDIA A100 80GB PCIe": 80, "NVIDIA H200": 141, "NVIDIA B200": 180}
USABLE = 0.93  # of a card's size is what Vast lists as its memory, at least


@dataclass(frozen=True)
class Ending:
    """How a container asks for its own end: the address with a place for its id, and the variables that hold id and
    key.
    """

    address: str
    identifier: str
    key: str

    def command(self) -> str:
        # Double quotes only: the shell takes it in single ones.
        program = (
            "import os, urllib.request as web; "
            f'web.urlopen(web.Request("{self.address}" % os.environ["{self.identifier}"], method="DELETE", '
            f'headers={{"Authorization": "Bearer " + os.environ["{self.key}"]}}))'
        )
        return f"{PYTHON} -c {word(program)}"


RUNPOD = Ending("https://api.runpod.io/v2/pods/%s", "RUNPOD_POD_ID", "RUNPOD_API_KEY")
VAST = Ending("https://console.vast.ai/api/v0/instances/%s/", "CONTAINER_ID", "CONTAINER_API_KEY")


def supervisor(ending: Ending) -> str:
    """Runs the job, tries again what may pass as often as Kubernetes would, and ends the machine, unless somebody
    else does.
    """
    final = "|".join(map(str, [0, *hopeless_codes(), Interrupted.exit_code]))
    return f"""\
printf %s "${SPEC_VARIABLE}" | base64 -d > {SPEC_PATH}
tries=0
while :; do
  {COMMAND} run {SPEC_PATH} & job=$!
  trap "kill -TERM $job" TERM
  code=0; wait $job || code=$?
  if [ $code -gt 128 ] && kill -0 $job 2>/dev/null; then code=0; wait $job || code=$?; fi
  case $code in {final}) break;; esac
  [ $tries -lt {BACKOFF_LIMIT} ] || break
  tries=$((tries + 1))
done
[ $code = {Interrupted.exit_code} ] || {ending.command()}
exit $code
"""


def runpod(task: Rendering) -> str:
    needs = task.needs
    body = {
        "name": task.name,
        "cloud": "SECURE",
        "image": task.options.image,
        "entrypoint": ["/bin/sh", "-c"],
        "cmd": [supervisor(RUNPOD)],
        "disk": (needs.ephemeral_bytes + IMAGE_BYTES) // GIB,
        "gpu": {
            "id": next(name for name, gb in RUNPOD_GPUS.items() if gb >= needs.gpu_gb),
            "count": 1,
            "minCudaVersion": CUDA,
            "minRamPerGpu": needs.memory_bytes // GIB,
            "minVcpuCountPerGpu": needs.cpu_request + 1,
        },
        "env": {
            "AWS_EC2_METADATA_DISABLED": "true",
            "TUNEJOB_STOP_SECONDS": str(STOP_SECONDS),
            SPEC_VARIABLE: spec_in_base64(task),
        },
    }
    given = "{name: os.environ[name] for name in sys.argv[1:] if os.environ.get(name)}"
    add = f'import json, os, sys; body = json.load(sys.stdin); body["env"] |= {given}; print(json.dumps(body))'
    lines = [
        "set -eu",
        f"printf %s {word(json.dumps(body, indent=2))} |",
        f"  python3 -c {word(add)} {' '.join(variables(task.spec))} |",
        '  curl --fail-with-body --silent --show-error --header "Authorization: Bearer $RUNPOD_API_KEY" \\',
        "    --header 'Content-Type: application/json' --data @- https://api.runpod.io/v2/pods",
    ]
    return _file(
        task,
        "RUNPOD_API_KEY=... sh FILE        rents a pod of RunPod (REST API v2), which deletes itself at the end",
        lines,
    )


def vast(task: Rendering) -> str:
    needs = task.needs
    disk_gb = (needs.ephemeral_bytes + IMAGE_BYTES) // GB
    query = " ".join([
        f"num_gpus=1 gpu_ram>={needs.gpu_gb * USABLE:.0f} cpu_ram>={needs.memory_bytes / GB:.0f} disk_space>={disk_gb}",
        f"cpu_cores_effective>={needs.cpu_request + 1} cuda_vers>={CUDA} reliability>0.98 rentable=true",
    ])  # fmt: skip
    first = 'import json, sys; print(json.load(sys.stdin)[0]["id"])'
    lines = [
        "set -eu",
        f"offer=${{1:-$(vastai search offers {word(query)} --order dph --raw | python3 -c {word(first)})}}",
        f"environment='-e AWS_EC2_METADATA_DISABLED=true -e TUNEJOB_STOP_SECONDS={STOP_SECONDS} -e {SPEC_VARIABLE}={spec_in_base64(task)}'",  # noqa: E501
        f"for name in {' '.join(variables(task.spec))}; do",
        '  [ -z "$(printenv "$name")" ] || environment="$environment -e $name=$(printenv "$name")"',
        "done",
        f'vastai create instance "$offer" --image {task.options.image} --label {task.name} --disk {disk_gb} \\',
        f'  --env "$environment" --entrypoint /bin/sh --args -c {word(supervisor(VAST))}',
    ]
    return _file(
        task,
        "sh FILE [OFFER]        rents the cheapest offer of Vast that fits; the instance destroys itself at the end",
        lines,
    )


def _file(task: Rendering, usage: str, lines: list[str]) -> str:
    secrets = "Credentials are taken from the environment: AWS_..., HF_TOKEN; the provider gets to know them."
    watch = "Written by the provider's documents, never tried there: look whether it has ended."
    header = [usage, secrets, watch, *task.needs.words(), SHELLCHECK]
    return "#!/bin/sh\n" + comment(header) + "\n".join(lines) + "\n"
