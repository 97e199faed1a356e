"""Objects of Kubernetes: a Job, and the same behind a queue of Kueue."""

from __future__ import annotations

from job.render.pod import APP, LABELS, NAME_LABEL, SPEC_KEY, job_spec
from job.render.rendering import Rendering
from job.render.text import Json, documents

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Link-local addresses (a node's metadata and credentials), private ones, and those shared by carriers and pods.
REFUSED_V4 = ["169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"]
# The same for IPv6, and link-local IPv4 through NAT64.
REFUSED_V6 = ["fe80::/10", "fc00::/7", "64:ff9b::a9fe:0/112"]
APPLY_LIMIT_BYTES = 200_000  # kubectl apply notes the object in an annotation, of which there may be 256 KiB


def job(task: Rendering) -> str:
    return manifests(task, batch_job(task))


def kueue(task: Rendering) -> str:
    """A Job that waits until Kueue lets it start. `suspend` is Kueue's: written here, a second apply would stop a
    running Job.
    """
    waiting = batch_job(task)
    waiting["metadata"]["labels"] = waiting["metadata"]["labels"] | {QUEUE_LABEL: task.options.queue}
    return manifests(task, waiting)


def batch_job(task: Rendering) -> Json:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(task, task.name, LABELS),
        "spec": job_spec(task.options.image, task.name, task.needs),
    }


def config_map(task: Rendering) -> Json:
    """The spec, under a name with its hash: another spec is another object."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(task, task.name, LABELS),
        "immutable": True,
        "data": {SPEC_KEY: task.text},
    }


def service_account(task: Rendering) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(task, APP, NAME_LABEL),
        "automountServiceAccountToken": False,
    }


def network_policy(task: Rendering) -> Json:
    """Nothing comes in; out go DNS inside the cluster and HTTPS to public addresses."""
    names = {
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
        "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
    }
    public = {
        "to": [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": REFUSED_V4}},
            {"ipBlock": {"cidr": "::/0", "except": REFUSED_V6}},
        ],
        "ports": [{"protocol": "TCP", "port": 443}],
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(task, APP, NAME_LABEL),
        "spec": {
            "podSelector": {"matchLabels": LABELS},
            "policyTypes": ["Ingress", "Egress"],
            "egress": [names, public],
        },
    }


def metadata(task: Rendering, name: str, labels: dict[str, str]) -> Json:
    place = {"namespace": task.options.namespace} if task.options.namespace else {}
    return {"name": name} | place | {"labels": labels}


def manifests(task: Rendering, *work: Json) -> str:
    """The file of everything that `work` needs, and itself."""
    large = len(task.text.encode()) > APPLY_LIMIT_BYTES
    header = [
        "kubectl apply --server-side -f FILE (a spec of this size needs it)" if large else "kubectl apply -f FILE",
        "Credentials come from the Secrets tunejob-s3 and tunejob-hub, as far as they are there.",
        *task.needs.words(),
    ]
    return documents(header, config_map(task), service_account(task), network_policy(task), *work)
