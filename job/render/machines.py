"""Several machines of one run: which pod is which, where they meet, and who may talk to them."""

from __future__ import annotations

from job.errors import SpecError
from job.follow.kubernetes import SET_LABEL
from job.render.options import flag
from job.render.pod import placed
from job.render.rendering import Rendering
from job.render.text import Json
from job.training.machines import MEETING, NUMBER

PORT = 29400
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def environment(task: Rendering, member: str) -> list[Json]:
    """Of each pod of a set that is called as the task is, `member` its only Job; empty for one machine."""
    if task.spec.resources.nodes == 1:
        return []
    first = f"{task.name}-{member}-0-0.{task.name}"  # as JobSet names pods
    return [
        {"name": NUMBER, "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
        {"name": MEETING, "value": f"{first}:{PORT}"},
    ]


def network() -> Json:
    """Pods find each other by name, before they are ready: they are so once they have met."""
    return {"enableDNSHostnames": True, "publishNotReadyAddresses": True}


def tried_again(job: Json) -> None:
    """Changes the `spec` of a Job: the end of one machine ends the others, each of which fails as well. Pods are
    therefore counted one by one, as together they would use up all tries at once.
    """
    job |= {"backoffLimitPerIndex": job.pop("backoffLimit"), "maxFailedIndexes": 0}


def among_themselves(task: Rendering) -> list[Json]:
    """A policy that lets the pods of one set talk to each other, at any port: NCCL takes those that are free."""
    if task.spec.resources.nodes == 1:
        return []
    own = {"podSelector": {"matchLabels": {SET_LABEL: task.name}}}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{task.name}-machines"},
        "spec": own | {"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [own]}], "egress": [{"to": [own]}]},
    }
    return [placed(policy, task.options)]


def require_one(task: Rendering, target: str) -> None:
    """Raises `SpecError` where a target starts one machine and the spec wants several."""
    nodes = task.spec.resources.nodes
    if nodes > 1:
        raise SpecError(f"{flag('to')} {target} starts one machine", where="/resources/nodes", found=str(nodes),
                        expected="1", hint="Render with --to jobset or --to trainjob")  # fmt: skip
