"""A JobSet with the Job as its only member, for clusters that queue and watch JobSets: `k8s/components/jobset` for a
spec.
"""

from __future__ import annotations

from job.render.kubernetes import manifests, metadata
from job.render.pod import KEPT_SECONDS, LABELS, job_spec
from job.render.rendering import Rendering
from job.render.text import Json

MEMBER = "tune"


def member(spec: Json) -> Json:
    """A Job's `spec` for a set that removes its Jobs itself."""
    return {key: value for key, value in spec.items() if key != "ttlSecondsAfterFinished"}


def jobset(task: Rendering) -> str:
    spec = {
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "failurePolicy": {"maxRestarts": 0},  # pods are retried by the Job's own rules
        "network": {"enableDNSHostnames": False},
        "replicatedJobs": [
            {
                "name": MEMBER,
                "replicas": 1,
                "template": {"spec": member(job_spec(task.options.image, task.name, task.needs))},
            },
        ],
    }
    head = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet"}
    return manifests(task, head | {"metadata": metadata(task, task.name, LABELS), "spec": spec})
