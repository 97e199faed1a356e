"""What every manifest of the project keeps to, beside the schemas of Kubernetes: each rule yields what is wrong."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence

from job.errors import TREE, Interrupted
from job.host.credentials import looks_secret, names_secret
from job.host.pulse import BEAT_SECONDS, HEARTBEAT
from tests.k8s.network import network
from tests.k8s.pods import Pod, pods, quantity, walk
from tests.k8s.render import Document

Faults = Iterator[str]
LONGEST_SILENCE = 120  # beats: an import, a frozen disk, a node that swaps
VOLUMES = {"configMap", "emptyDir", "projected", "secret", "downwardAPI", "csi", "persistentVolumeClaim", "ephemeral"}
CLUSTER_KINDS = {"Namespace", "ClusterQueue", "ResourceFlavor", "ClusterTrainingRuntime"}
HASHED = re.compile(r"[a-z0-9-]+-[a-z0-9]{10}")
TAGGED = re.compile(r"(?P<name>[a-z0-9.:/_-]+?)(?::(?P<tag>[\w.-]+)|@sha256:[0-9a-f]{64})")
SERVICE_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
DOMAIN_PATH = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+/[A-Za-z0-9._/-]+")
WRITABLE = {"/scratch", "/tmp", "/dev/shm", "/models", "/data"}


RUNTIME = "ClusterTrainingRuntime"  # of every spec: a TrainJob has the resources of its own


def failure_policy(container: str, before: Sequence[str] = ()) -> Document:
    """The `podFailurePolicy` that `job.errors`' exit codes ask for, of `container` and our programs `before` it."""
    final = sorted(kind.exit_code for kind in TREE if not kind.retryable)
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": final}},
            {
                "action": "Ignore",
                "onExitCodes": {"containerName": container, "operator": "In", "values": [Interrupted.exit_code]},
            },
            *(
                {"action": "FailJob", "onExitCodes": {"containerName": name, "operator": "In", "values": final}}
                for name in before
            ),
        ]
    }


def jobs(documents: list[Document]) -> Faults:
    for pod in pods(documents):
        if pod.job is None:
            continue
        ours = [c["name"] for c in pod.spec.get("initContainers", []) if c.get("command", [])[:2] == ["python", "-m"]]
        if pod.job.get("podFailurePolicy") != failure_policy(pod.main, ours):
            yield f"{pod.where}: podFailurePolicy is not what the exit codes of job.errors ask for"
        if pod.spec.get("restartPolicy") != "Never":
            yield f"{pod.where}: podFailurePolicy needs restartPolicy Never"
        if pod.job.get("podReplacementPolicy") != "Failed":
            yield f"{pod.where}: two pods could write to one output: podReplacementPolicy must be Failed"
        tries = "maxFailedIndexes" if "backoffLimitPerIndex" in pod.job else "backoffLimit"
        missing = [name for name in (tries, "activeDeadlineSeconds") if name not in pod.job]
        if missing:
            yield f"{pod.where}: without end: {', '.join(missing)} missing"
        if pod.job.get("suspend"):
            yield f"{pod.where}: a second `kubectl apply` would suspend the running Job"
        yield from _stopping(pod)
    for document in documents:
        if document["kind"] in ("Job", "JobSet") and "ttlSecondsAfterFinished" not in document["spec"]:
            yield f"{document['kind']}: never cleaned up: ttlSecondsAfterFinished missing"


def _stopping(pod: Pod) -> Faults:
    budget = {entry["name"]: entry.get("value") for entry in pod.tune.get("env", [])}.get("TUNEJOB_STOP_SECONDS", "8")
    if int(str(budget)) >= pod.spec.get("terminationGracePeriodSeconds", 30):
        yield f"{pod.where}: killed before its last words: TUNEJOB_STOP_SECONDS is not below the grace period"
    if (pod.tune.get("terminationMessagePath"), pod.tune.get("terminationMessagePolicy")) != (
        "/dev/termination-log",
        "File",
    ):
        yield f"{pod.where}: the termination message would not be read"


def restricted(documents: list[Document]) -> Faults:
    """Pod Security Standard `restricted`, and a read-only root and no token of the cluster besides."""
    for pod in pods(documents):
        host = [
            name for name in ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "hostAliases") if pod.spec.get(name)
        ]
        if host:
            yield f"{pod.where}: {', '.join(host)}: not restricted"
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: a service account token would be mounted"
        shared = pod.spec.get("securityContext", {})
        for container in pod.containers:
            yield from _restricted_container(f"{pod.where}/{container['name']}", container, shared)
        for volume in pod.spec.get("volumes", []):
            if not set(volume) - {"name"} <= VOLUMES:
                yield f"{pod.where}: volume {volume['name']} is of a kind that is not restricted"
            for source in volume.get("projected", {}).get("sources", []):
                if "audience" not in source.get("serviceAccountToken", {"audience": ""}):
                    yield f"{pod.where}: volume {volume['name']}: a token for the cluster's own API"


def _restricted_container(where: str, container: Document, shared: Document) -> Faults:
    own = container.get("securityContext", {})
    effective = shared | own
    wanted = {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    for name, value in wanted.items():
        if effective.get(name) is not value:
            yield f"{where}: {name} must be {value}"
    if (
        effective.get("runAsUser") == 0
        or effective.get("privileged")
        or effective.get("procMount", "Default") != "Default"
    ):
        yield f"{where}: root or privileged: not restricted"
    if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
        yield f"{where}: all capabilities must be dropped"
    if effective.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{where}: seccompProfile missing"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield f"{where}: hostPort: not restricted"
    for mount in container.get("volumeMounts", []):
        if not mount.get("readOnly") and mount["mountPath"] not in WRITABLE:
            yield f"{where}: {mount['mountPath']} is writable"


def images(documents: list[Document]) -> Faults:
    for pod in pods(documents):
        for container in pod.containers:
            found = TAGGED.fullmatch(container["image"])
            if not found or found["tag"] == "latest":
                yield f"{pod.where}/{container['name']}: image {container['image']} has no fixed tag"
        own = {container["image"] for container in pod.containers}
        if len(own) > 1 and pod.job is not None:
            yield f"{pod.where}: containers of different images: {sorted(own)}"


def gpus(documents: list[Document]) -> Faults:
    """As many as the spec wants, one where it says nothing, in one pod: others would be paid for and stay idle."""
    wanted, nodes = (max((_wanted(document, key) for document in documents), default=1) for key in ("gpus", "nodes"))
    reason = f"not the {wanted} GPU in one pod that the spec wants"
    for document in documents:
        own = 1 if document["kind"] == RUNTIME else wanted
        for pointer, value in walk(document.get("spec", {})):
            key = pointer.rsplit("/", 1)[-1]
            several = key in ("numProcPerNode", "replicas") and value not in (1, "auto")
            several |= key in ("parallelism", "completions", "numNodes") and value not in (1, nodes)
            if several:
                yield f"{document['kind']}{pointer}: {reason}"
            if key in ("requests", "limits") and isinstance(value, dict) and _gpus(value) not in (0, own):
                yield f"{document['kind']}{pointer}: {reason}"
    for pod in pods(documents):
        count = sum(_gpus(container.get("resources", {}).get("limits", {})) for container in pod.containers)
        if pod.job is not None and count != (1 if pod.where.startswith(RUNTIME) else wanted):
            yield f"{pod.where}: {reason if count else 'no GPU is asked for'}"


def _wanted(document: Document, key: str) -> int:
    """By the spec that the document holds, if it does."""
    try:
        return json.loads(document["data"]["spec.json"])["resources"][key]
    except (LookupError, TypeError, ValueError):
        return 1


def _gpus(resources: Document) -> int:
    return sum(
        int(str(count))
        for name, count in resources.items()
        if name.startswith(("nvidia.com/", "amd.com/", "intel.com/"))
    )


def resources(documents: list[Document]) -> Faults:
    for pod in pods(documents):
        for container in pod.containers:
            where = f"{pod.where}/{container['name']}"
            for side in ("requests", "limits"):
                missing = {"cpu", "memory", "ephemeral-storage"} - set(container.get("resources", {}).get(side, {}))
                if missing:
                    yield f"{where}: {side} lack {', '.join(sorted(missing))}"
        main = pod.tune if pod.job else pod.spec["containers"][0]
        yield from _volumes_fit(pod, main.get("resources", {}))


def _volumes_fit(pod: Pod, declared: Document) -> Faults:
    limits, requests = declared.get("limits", {}), declared.get("requests", {})
    sizes = {True: quantity(0), False: quantity(0)}
    for volume in pod.spec.get("volumes", []):
        if "emptyDir" not in volume:
            continue
        if "sizeLimit" not in volume["emptyDir"]:
            yield f"{pod.where}: volume {volume['name']} has no sizeLimit"
        sizes[volume["emptyDir"].get("medium") == "Memory"] += quantity(volume["emptyDir"].get("sizeLimit", 0))
    if sizes[False] > quantity(limits.get("ephemeral-storage", 0)):
        yield f"{pod.where}: its volumes are larger than its ephemeral-storage"
    if sizes[True] * 2 > quantity(limits.get("memory", 0)):
        yield f"{pod.where}: volumes in memory take more than half of it"
    if pod.job is not None:
        for name in ("memory", "ephemeral-storage"):
            if limits.get(name) != requests.get(name):
                yield f"{pod.where}: {name} is promised but not reserved: request and limit differ"


def secrets(documents: list[Document]) -> Faults:
    for pod in pods(documents):
        for container in pod.containers:
            for entry in container.get("env", []):
                if "value" in entry and (names_secret(entry["name"]) or looks_secret(entry["value"])):
                    yield f"{pod.where}: the value of {entry['name']} is a secret: refer to it"
    for document in documents:
        if document["kind"] == "Secret":
            values = [base64.b64decode(value) for value in document.get("data", {}).values()]
            if not values or not all(value.startswith(b"try-out") for value in values):
                yield f"Secret/{document['metadata']['name']}: credentials do not belong in a manifest"
        elif looks_secret(str(document)):
            yield f"{document['kind']}: something in it looks like a credential"


def liveness(documents: list[Document]) -> Faults:
    """A process that is dead though it is there is found by its heartbeat; one at work is never taken for dead."""
    for pod in pods(documents):
        if pod.job is None:
            continue
        probe, entries = (
            pod.tune.get("livenessProbe"),
            {entry["name"]: entry.get("value", "") for entry in pod.tune.get("env", [])},
        )
        beat = entries.get(HEARTBEAT, "")
        if not probe or not beat:
            yield f"{pod.where}: a process that hangs is never found: no livenessProbe on {HEARTBEAT}"
            continue
        if not any(
            beat.startswith(f"{mount['mountPath']}/") for mount in pod.tune["volumeMounts"] if not mount.get("readOnly")
        ):
            yield f"{pod.where}: {beat} cannot be written"
        minutes = re.search(r"-mmin -(\d+)", probe["exec"]["command"][-1])
        if not minutes or int(minutes[1]) * 60 < LONGEST_SILENCE * BEAT_SECONDS:
            allowed = minutes[1] if minutes else "no"
            yield f"{pod.where}: a run at work could be taken for dead: the heartbeat may be {allowed} minutes old"
        if probe["failureThreshold"] < 3 or probe["timeoutSeconds"] < 10 or probe["initialDelaySeconds"] < 120:
            yield f"{pod.where}: a slow node would end the run: the probe has no patience"


def names(documents: list[Document]) -> Faults:
    """The run has the hashed name of its spec: another spec is another Job, and its pod mounts that very spec."""
    (spec,) = (d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap" and "spec.json" in d["data"])
    if not HASHED.fullmatch(spec):
        yield f"ConfigMap {spec}: the spec's name has no hash"
    mounted = []
    for document in documents:
        if document["kind"] in ("Job", "JobSet", "TrainJob") and document["metadata"]["name"] != spec:
            yield f"{document['kind']}/{document['metadata']['name']}: not the name of its spec, {spec}"
        if document["kind"] in CLUSTER_KINDS and "namespace" in document["metadata"]:
            yield f"{document['kind']}: a cluster's object has no namespace"
        for _, value in walk(document.get("spec", {})):
            if isinstance(value, dict) and value.get("name") == "spec" and "configMap" in value:
                mounted.append(value["configMap"]["name"])
    if mounted != [spec]:
        yield f"the pod mounts {mounted or 'no spec'}, not {spec}"


def controllers(documents: list[Document]) -> Faults:
    """What webhooks of JobSet and Kubeflow Trainer refuse and schemas take: seen on a real control plane."""
    for document in documents:
        where = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] in ("JobSet", "TrainJob") and not SERVICE_NAME.fullmatch(document["metadata"]["name"]):
            yield f"{where}: no name of a JobSet: it must begin with a letter"
        if document["kind"] == "JobSet":
            for job in document["spec"]["replicatedJobs"]:
                if job["template"]["spec"].get("completionMode") != "Indexed":
                    yield f"{where}/{job['name']}: a second apply is refused: the webhook adds completionMode: Indexed"
        for patch in document.get("spec", {}).get("runtimePatches", []) if document["kind"] == "TrainJob" else ():
            if not DOMAIN_PATH.fullmatch(patch["manager"]):
                yield f"{where}: manager {patch['manager']} does not begin with a domain"


def deletions(documents: list[Document]) -> Faults:
    """`kubectl replace --force -k` and `delete -k` delete all of an overlay, and with a namespace what is in it."""
    for document in documents:
        if document["kind"] == "Namespace":
            yield f"Namespace/{document['metadata']['name']}: would be deleted with its Secrets when the overlay is"


def queues(documents: list[Document]) -> Faults:
    """Kueue admits a pod only if its queue covers every resource that the pod asks for."""
    for queue in (document for document in documents if document["kind"] == "ClusterQueue"):
        covered = {name for group in queue["spec"]["resourceGroups"] for name in group["coveredResources"]}
        for pod in pods(documents):
            missing = {name for container in pod.containers for name in container["resources"]["requests"]} - covered
            if missing:
                name, names = queue["metadata"]["name"], ", ".join(sorted(missing))
                yield f"ClusterQueue/{name}: never admits {pod.where}: {names} not covered"


RULES: tuple[Callable[[list[Document]], Faults], ...] = (
    jobs, restricted, images, gpus, resources, secrets, liveness, names, queues, controllers, deletions, network,
)  # fmt: skip


def faults(documents: list[Document]) -> list[str]:
    return [fault for rule in RULES for fault in rule(documents)]
