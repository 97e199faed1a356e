"""A TrainJob of Kubeflow Trainer and the runtime it refers to: `k8s/components/trainer` for a spec.

The runtime is the cluster's and the same for every spec; image, resources and scratch of one run are the TrainJob's.
"""

from __future__ import annotations

import copy
from typing import Any

from job.plan.machine import GIB, Resources
from job.render.jobset import member
from job.render.kubernetes import manifests, metadata
from job.render.options import IMAGE
from job.render.pod import APP, LABELS, NAME_LABEL, SPEC_FOLDER, gibibytes, job_spec, requirements
from job.render.rendering import Rendering
from job.render.text import Json

API = "trainer.kubeflow.org"
VERSION = f"{API}/v1alpha1"
# Kubeflow Trainer knows the training step by this name of the Job and of the container, and by the label below
NODE = "node"
STEP_LABEL = {f"{API}/trainjob-ancestor-step": "trainer"}
# Of the base manifests, enough for a model of one thousand million weights; every TrainJob says its own.
BASE = Resources(
    gpu_gb=24, gpu_needed_bytes=0, memory_bytes=12 * GIB, scratch_bytes=32 * GIB, cpu_request=3, cpu_limit=8, origin="",
)  # fmt: skip


def trainjob(task: Rendering) -> str:
    return manifests(task, runtime(), train_job(task))


def runtime() -> Json:
    """How tunejob runs in this cluster, without a spec."""
    spec = copy.deepcopy(member(job_spec(IMAGE, "", BASE)))
    pod = spec["template"]["spec"]
    pod["volumes"] = _without_spec(pod["volumes"])
    pod["containers"][0]["volumeMounts"] = _without_spec(pod["containers"][0]["volumeMounts"])
    pod["containers"][0]["name"] = NODE
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            rule["onExitCodes"]["containerName"] = NODE
    node = {"name": NODE, "replicas": 1, "template": {"metadata": {"labels": STEP_LABEL}, "spec": spec}}
    job_set = {"failurePolicy": {"maxRestarts": 0}, "network": {"enableDNSHostnames": False}, "replicatedJobs": [node]}
    return {
        "apiVersion": VERSION,
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": APP, "labels": NAME_LABEL},
        "spec": {"mlPolicy": {"numNodes": 1}, "template": {"spec": job_set}},
    }


def train_job(task: Rendering) -> Json:
    """Which spec, image and resources."""
    pod = job_spec(task.options.image, task.name, task.needs)["template"]["spec"]
    own: Json = {
        "volumes": [
            {"name": "spec", "configMap": {"name": task.name}},
            {"name": "scratch", "emptyDir": {"sizeLimit": gibibytes(task.needs.scratch_bytes)}},
        ],
        "containers": [{"name": NODE, "volumeMounts": [{"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True}]}],
    }
    patch = {"spec": {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": {"spec": own}}}}]}}
    return {
        "apiVersion": VERSION,
        "kind": "TrainJob",
        "metadata": metadata(task, task.name, LABELS),
        "spec": {
            "runtimeRef": {"apiGroup": API, "kind": "ClusterTrainingRuntime", "name": APP},
            "trainer": {
                "numNodes": 1,
                "image": task.options.image,
                "args": pod["containers"][0]["args"],
                "resourcesPerNode": requirements(task.needs),
            },
            "runtimePatches": [{"manager": APP, "trainingRuntimeSpec": {"template": patch}}],
        },
    }


def _without_spec(named: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in named if item["name"] != "spec"]
