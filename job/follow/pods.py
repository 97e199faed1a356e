"""What the objects of a cluster say of a run: how each pod ended, and why none is at work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from job.follow.kubectl import Json
from job.follow.outcome import UNKNOWN, Attempt, Heard

CONTAINER = "tunejob"
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
ENDS = {"Complete": 0, "Completed": 0, "Failed": UNKNOWN}  # of a Job, a JobSet, all of them
PAUSE = (
    "a pause before the next try, as Kubernetes makes it after a pod that failed: 10 s, then twice as long each time"
)


def conditions(resource: Json) -> list[Json]:
    """Those that hold."""
    return [c for c in resource.get("status", {}).get("conditions") or () if c["status"] == "True"]


def container_name(job: Json) -> str:
    """Of the container that trains: the one whose exit codes the Job looks at (a TrainJob's is called `node`)."""
    rules = job.get("spec", {}).get("podFailurePolicy", {}).get("rules") or ()
    return next((name for rule in rules if (name := rule.get("onExitCodes", {}).get("containerName"))), CONTAINER)


def container_state(pod: Json, container: str) -> Json:
    """`waiting`, `running` or `terminated`; empty before there is one."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return next((dict(status.get("state") or {}) for status in statuses if status["name"] == container), {})


def attempt(pod: Json, container: str, heard: Heard) -> Attempt:
    """What became of a pod, from its container's end; where that is missing, from what its log said last."""
    end = container_state(pod, container).get("terminated")
    disrupted = next((_in_words(c) for c in conditions(pod) if c["type"] == "DisruptionTarget"), "")
    facts = _termination_facts(end or {}) or (heard.last if heard.exit_code else {})
    code = end["exitCode"] if end else heard.exit_code
    reason = disrupted or pod.get("status", {}).get("reason") or (end or {}).get("reason") or "no end was seen"
    return Attempt(pod["metadata"]["name"], code, str(reason), facts)


def _termination_facts(end: Json) -> Json:
    """The termination message, if it is ours (schemas/failure.schema.json)."""
    try:
        facts = json.loads(end.get("message") or "")
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and "exit_code" in facts else {}


def is_first(pod: Json) -> bool:
    """Whether this is the pod of a Job that runs the job: its only one, or of several machines the first."""
    said = pod["metadata"].get("annotations") or {}
    return str(said.get(COMPLETION_INDEX, "0")) == "0"


def node_is_lost(pod: Json) -> bool:
    """Whether the cluster has given up hearing from the pod's node: it takes Ready away, and only that."""
    said = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions") or ()}
    return said.get("Ready") != "True" and said.get("ContainersReady") == "True"


def waiting_for(job: Json, pods: Sequence[Json], events: Sequence[Json]) -> str:
    """Why nothing runs, in the cluster's words; empty while something does or all is over. `pods`: the oldest
    first. `events`: warnings about the Job.
    """
    held = {c["type"] for c in conditions(job)}
    if held & ENDS.keys():
        return ""
    if "Suspended" in held:
        return "queued: the Job is suspended"
    live = [pod for pod in pods if pod["status"].get("phase") not in ("Succeeded", "Failed")]
    container = container_name(job)
    if any("running" in container_state(pod, container) and not node_is_lost(pod) for pod in live):
        return ""
    if live:
        return next((words for pod in reversed(live) for words in _hindrances(pod, container)), "")
    newest = max((pod["metadata"]["creationTimestamp"] for pod in pods), default="")
    refused = [event for event in events if "Creat" in str(event.get("reason")) and _time(event) >= newest]
    if refused:
        return _in_words(max(refused, key=_time))
    return PAUSE if pods else ""


def _hindrances(pod: Json, container: str) -> Iterator[str]:
    """What keeps one pod from working."""
    state, node = container_state(pod, container), pod.get("spec", {}).get("nodeName")
    listed = pod["status"].get("conditions") or ()
    if node_is_lost(pod):
        yield (
            f"node {node} does not answer; its pod is replaced once the node is back, or gone for good "
            f"(kubectl delete node {node})"
        )
    if state.get("waiting", {}).get("reason"):
        yield _in_words(state["waiting"])
    yield from (_in_words(c) for c in listed if c.get("reason") in ("Unschedulable", "SchedulingGated"))
    if node and not state:
        yield f"node {node} has not started the pod yet"


def _in_words(thing: Json) -> str:
    return ": ".join(str(thing[key]) for key in ("reason", "message") if thing.get(key))


def _time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")
