"""Objects of Kubernetes: a Job, and the same in a queue of Kueue."""

from __future__ import annotations

from collections.abc import Sequence

from job.follow.kubernetes import JOB_LABEL, SET_LABEL
from job.render.deadline import DAY_HOURS
from job.render.egress import policy
from job.render.image import registry, words_for_nodes
from job.render.machines import among_themselves
from job.render.options import RenderOptions
from job.render.pod import batch_job, placed, shipped
from job.render.rendering import Rendering
from job.render.shell import JUDGE, S3_SECRETS, asked_for
from job.render.text import Json, documents
from job.spec.sections import judges

QUEUE = "tunejob"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
APPLY_LIMIT_BYTES = 200_000  # kubectl apply notes the object in an annotation, of which there may be 256 KiB


def job(task: Rendering) -> str:
    return manifests(task, batch_job(task))


def kueue(task: Rendering) -> str:
    """A Job that waits for Kueue, which sets `suspend`: written here, a second apply would stop a running Job."""
    waiting = batch_job(task)
    waiting["metadata"]["labels"] |= {QUEUE_LABEL: task.options.queue or QUEUE}
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
    kind = work[-1]["kind"]
    header = [
        "kubectl apply --server-side -f FILE (a spec of this size needs it)" if large else "kubectl apply -f FILE",
        *credentials(task),
        *words_for_nodes(task.options.image, task.options.image_with),
        task.deadline.words() if kind != "TrainJob" else f"Deadline: {DAY_HOURS} hours, that of the runtime.",
        *task.needs.words(),
    ]
    policies = [placed(shipped("base/networkpolicy.yaml"), task.options)]
    if task.options.egress:
        metadata = batch_job(task)["metadata"]
        label = JOB_LABEL if kind == "Job" else SET_LABEL  # which the controllers put on the pods
        policies.append(policy(task.name, metadata, label, task.options.egress))
    policies += among_themselves(task)
    return documents(header, config_map(task), *_account(task.options), *policies, *work)


def _account(options: RenderOptions) -> list[Json]:
    """The service account, unless it is there already: one that is named and gets no annotation."""
    if options.service_account and not options.annotation:
        return []
    account = placed(shipped("base/serviceaccount.yaml"), options)
    account["metadata"]["name"] = options.service_account or account["metadata"]["name"]
    account["metadata"] |= {"annotations": options.annotation} if options.annotation else {}
    return [account]


def credentials(task: Rendering) -> list[str]:
    """For the head of the file: the Secrets that the pod reads, by the commands that make them."""
    options = task.options
    into = f" -n {options.namespace}" if options.namespace else ""
    own = asked_for(task.spec)
    used = {", the judge": judges(task.spec), ", tracking": {*own} - {*JUDGE}}
    uses = "".join(word for word, wanted in used.items() if wanted)
    lines = [
        "Secrets, once in the namespace, the values from your environment. Either may be missing; other variables",
        "(AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL) go in as further keys of the first:",
        f"  {_secret(into, 'tunejob-s3', S3_SECRETS)}",
        f"  {_secret(into, 'tunejob-hub', ('HF_TOKEN', *own))}  # gated models, pushing{uses}",
    ]
    if options.pull_secret:
        login = f"--docker-server={registry(options.image)} --docker-username=NAME --docker-password=PASSWORD"
        lines.append(f"  kubectl{into} create secret docker-registry {options.pull_secret} {login}")
    return lines


def _secret(into: str, name: str, keys: Sequence[str]) -> str:
    return f"kubectl{into} create secret generic {name} " + " ".join(f'--from-literal={key}="${key}"' for key in keys)
