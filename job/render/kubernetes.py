"""Objects of Kubernetes: a Job, and the same in a queue of Kueue."""

from __future__ import annotations

from job.render.pod import batch_job, placed, shipped
from job.render.rendering import Rendering
from job.render.text import Json, documents

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
APPLY_LIMIT_BYTES = 200_000  # kubectl apply notes the object in an annotation, of which there may be 256 KiB


def job(task: Rendering) -> str:
    return manifests(task, batch_job(task))


def kueue(task: Rendering) -> str:
    """A Job that waits until Kueue lets it start. `suspend` is Kueue's: written here, a second apply would stop a
    running Job.
    """
    waiting = batch_job(task)
    waiting["metadata"]["labels"] |= {QUEUE_LABEL: task.options.queue}
    return manifests(task, waiting)


def config_map(task: Rendering) -> Json:
    """The spec, under the Job's name with its hash: another spec is another object."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": batch_job(task)["metadata"],
        "immutable": True,
        "data": {"spec.json": task.text},
    }


def manifests(task: Rendering, *work: Json) -> str:
    """The file of everything that `work` needs, and itself."""
    large = len(task.text.encode()) > APPLY_LIMIT_BYTES
    header = [
        "kubectl apply --server-side -f FILE (a spec of this size needs it)" if large else "kubectl apply -f FILE",
        "Credentials come from the Secrets tunejob-s3 and tunejob-hub, where they exist.",
        *task.needs.words(),
    ]
    around = [placed(shipped(f"base/{name}.yaml"), task.options) for name in ("serviceaccount", "networkpolicy")]
    return documents(header, config_map(task), *around, *work)
