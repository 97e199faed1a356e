"""The pod: the packaged `k8s/base` with the name, image and resources of a spec. What is not patched here is there."""

from __future__ import annotations

from pathlib import Path

import yaml

from job.errors import TREE
from job.host.memory import GIB
from job.plan.machine import Resources
from job.render.options import RenderOptions
from job.render.rendering import Rendering
from job.render.text import Json

JOB, JOBSET = "base/job.yaml", "components/jobset/copy/jobset.yaml"
RUNTIME, TRAINJOB = "components/trainer/copy/runtime.yaml", "components/trainer/copy/trainjob.yaml"


def shipped(path: str) -> Json:
    """A manifest of `k8s/`, in the package or, in a checkout, beside it; read anew, so that it can be changed."""
    here = Path(__file__).parents[1]
    file = next(file for file in (here / "k8s" / path, here.parent / "k8s" / path) if file.is_file())
    return dict(yaml.safe_load(file.read_text("utf-8")))


_POD = shipped(JOB)["spec"]["template"]["spec"]
# What other places than Kubernetes take from it.
UID: int = _POD["securityContext"]["runAsUser"]
GRACE_SECONDS: int = _POD["terminationGracePeriodSeconds"]
STOP_SECONDS = next(int(e["value"]) for e in _POD["containers"][0]["env"] if e["name"] == "TUNEJOB_STOP_SECONDS")


def retryable_codes() -> list[int]:
    """Exit codes of failures that a retry may not meet, the stop by a signal among them."""
    return sorted(kind.exit_code for kind in TREE if kind.retryable)


def batch_job(task: Rendering) -> Json:
    """The shipped Job for a spec."""
    job = placed(shipped(JOB), task.options)
    job["metadata"]["name"] = task.name
    job["spec"]["activeDeadlineSeconds"] = task.deadline.hours * 3600
    pod = job["spec"]["template"]["spec"]
    pod |= of_its_own(task.options)
    pod["containers"][0] |= {"image": task.options.image, "resources": _requirements(task.needs)}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    volumes["spec"]["configMap"]["name"] = task.name
    sizes = {"scratch": task.needs.scratch_bytes, "tmp": task.needs.tmp_bytes, "dshm": task.needs.shm_bytes}
    for name, size in sizes.items():
        volumes[name]["emptyDir"]["sizeLimit"] = _gibibytes(size)
    return job


def of_its_own(options: RenderOptions) -> Json:
    """What of the pod was chosen: who it is, and how its image is pulled."""
    account = {"serviceAccountName": options.service_account} if options.service_account else {}
    return account | ({"imagePullSecrets": [{"name": options.pull_secret}]} if options.pull_secret else {})


def placed(manifest: Json, options: RenderOptions) -> Json:
    """`manifest` in the namespace that was asked for, if one was."""
    place = {"namespace": options.namespace} if options.namespace else {}
    return manifest | {"metadata": {"name": manifest["metadata"]["name"]} | place | manifest["metadata"]}


def _requirements(needs: Resources) -> Json:
    held = {
        "memory": _gibibytes(needs.memory_bytes),
        "ephemeral-storage": _gibibytes(needs.ephemeral_bytes),
        "nvidia.com/gpu": str(needs.gpus),
    }
    return {"requests": {"cpu": str(needs.cpu_request)} | held, "limits": {"cpu": str(needs.cpu_limit)} | held}


def _gibibytes(size: int) -> str:
    return f"{size // GIB}Gi"
