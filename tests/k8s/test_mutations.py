"""The rules can fail: a manifest broken in each of these ways is refused, with that reason."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable

import pytest

from tests.k8s import rules
from tests.k8s.pods import pods
from tests.k8s.render import Document, only

Break = Callable[[list[Document]], object]


def job(documents: list[Document]) -> Document:
    return only(documents, "Job")["spec"]


def pod(documents: list[Document]) -> Document:
    return next(pods(documents)).spec


def main(documents: list[Document]) -> Document:
    return pod(documents)["containers"][0]


def egress(documents: list[Document]) -> list[Document]:
    return only(documents, "NetworkPolicy")["spec"]["egress"]


def limit(name: str, value: str) -> Break:
    return lambda documents: [
        main(documents)["resources"][side].update({name: value}) for side in ("requests", "limits")
    ]


AWS_KEY = "AKIA" + "ABCDEFGHIJKLMNOP"
MUTATIONS: dict[str, tuple[Break, str]] = {
    "rules in another order": (lambda d: job(d)["podFailurePolicy"]["rules"].reverse(), "podFailurePolicy is not"),
    "a code retried": (lambda d: job(d)["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"].remove(13),
                       "podFailurePolicy is not"),
    "a code given up": (lambda d: job(d)["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"].append(20),
                        "podFailurePolicy is not"),
    "stops count": (lambda d: job(d)["podFailurePolicy"]["rules"].pop(), "podFailurePolicy is not"),
    "two pods at once": (lambda d: job(d).update(podReplacementPolicy="TerminatingOrFailed"), "two pods could write"),
    "restarted in place": (lambda d: pod(d).update(restartPolicy="OnFailure"), "restartPolicy Never"),
    "no deadline": (lambda d: job(d).pop("activeDeadlineSeconds"), "without end: activeDeadlineSeconds"),
    "never removed": (lambda d: job(d).pop("ttlSecondsAfterFinished"), "never cleaned up"),
    "suspended": (lambda d: job(d).update(suspend=True), "would suspend"),
    "grace too short": (lambda d: pod(d).update(terminationGracePeriodSeconds=60), "killed before its last words"),
    "message elsewhere": (lambda d: main(d).update(terminationMessagePath="/tmp/x"),
                          "termination message would not be read"),
    "root": (lambda d: main(d)["securityContext"].update(runAsUser=0), "root or privileged"),
    "perhaps root": (lambda d: pod(d)["securityContext"].pop("runAsNonRoot"), "runAsNonRoot must be"),
    "writable root": (lambda d: main(d)["securityContext"].pop("readOnlyRootFilesystem"),
                      "readOnlyRootFilesystem must be"),
    "a capability": (lambda d: main(d)["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
                     "capabilities must be dropped"),
    "escalation": (lambda d: main(d)["securityContext"].pop("allowPrivilegeEscalation"),
                   "allowPrivilegeEscalation must be"),
    "no seccomp": (lambda d: pod(d)["securityContext"].pop("seccompProfile"), "seccompProfile missing"),
    "host network": (lambda d: pod(d).update(hostNetwork=True), "hostNetwork: not restricted"),
    "host path": (lambda d: pod(d)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
                  "volume h is of a kind"),
    "another writable place": (
        lambda d: main(d)["volumeMounts"].append({"name": "scratch", "mountPath": "/opt"}),
        "/opt is writable",
    ),
    "writable spec": (lambda d: main(d)["volumeMounts"][0].pop("readOnly"), "/etc/tunejob is writable"),
    "token": (lambda d: pod(d).pop("automountServiceAccountToken"), "token would be mounted"),
    "token by hand": (
        lambda d: pod(d)["volumes"].append({"name": "t",
                                            "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
        "a token for the cluster's own API",
    ),
    "latest": (lambda d: main(d).update(image="ghcr.io/tunejob/tunejob:latest"), "no fixed tag"),
    "no tag": (lambda d: main(d).update(image="ghcr.io/tunejob/tunejob"), "no fixed tag"),
    "two GPUs": (limit("nvidia.com/gpu", "2"), "not the 1 GPU in one pod"),
    "a GPU and a slice": (limit("nvidia.com/mig-1g.10gb", "1"), "not the 1 GPU in one pod"),
    "two pods": (lambda d: job(d).update(parallelism=2), "not the 1 GPU in one pod"),
    "no GPU": (lambda d: [main(d)["resources"][side].pop("nvidia.com/gpu") for side in ("requests", "limits")],
               "no GPU is asked for"),
    "no disk limit": (lambda d: main(d)["resources"]["limits"].pop("ephemeral-storage"),
                      "limits lack ephemeral-storage"),
    "volume above the disk": (lambda d: pod(d)["volumes"][1]["emptyDir"].update(sizeLimit="64Gi"),
                              "larger than its ephemeral-storage"),
    "volume without limit": (lambda d: pod(d)["volumes"][1]["emptyDir"].clear(), "scratch has no sizeLimit"),
    "memory as disk": (lambda d: pod(d)["volumes"][3]["emptyDir"].update(sizeLimit="8Gi"), "more than half"),
    "memory not reserved": (lambda d: main(d)["resources"]["requests"].update(memory="1Gi"),
                            "promised but not reserved"),
    "secret by value": (lambda d: main(d)["env"].append({"name": "HF_TOKEN", "value": "x"}),
                        "the value of HF_TOKEN is a secret"),
    "key under another name": (lambda d: main(d)["env"].append({"name": "ID", "value": AWS_KEY}),
                               "the value of ID is a secret"),
    "key in the spec": (lambda d: only(d, "ConfigMap")["data"].update({"spec.json": AWS_KEY}),
                        "looks like a credential"),
    "a real Secret": (
        lambda d: d.append({"kind": "Secret", "metadata": {"name": "s"},
                            "data": {"k": base64.b64encode(b"real").decode()}}),
        "do not belong in a manifest",
    ),
    "no probe": (lambda d: main(d).pop("livenessProbe"), "never found"),
    "no heartbeat": (lambda d: main(d)["env"].pop(), "never found"),
    "heartbeat where nothing is written": (lambda d: main(d)["env"][-1].update(value="/etc/tunejob/beat"),
                                           "cannot be written"),
    "heartbeat too young": (lambda d: main(d)["livenessProbe"]["exec"].update(command=["sh", "-c", "find x -mmin -1"]),
                            "taken for dead"),
    "probe without patience": (lambda d: main(d)["livenessProbe"].update(failureThreshold=1), "no patience"),
    "name without hash": (lambda d: only(d, "ConfigMap")["metadata"].update(name="tunejob-spec"), "has no hash"),
    "another spec mounted": (lambda d: pod(d)["volumes"][0]["configMap"].update(name="tunejob-spec-0000000000"),
                             "the pod mounts"),
    "job of a fixed name": (lambda d: only(d, "Job")["metadata"].update(name="tunejob"), "not the name of its spec"),
    "link-local": (lambda d: egress(d)[1]["to"][0]["ipBlock"]["except"].remove("169.254.0.0/16"),
                   "169.254.0.0/16 (link-local"),
    "link-local, IPv6": (lambda d: egress(d)[1]["to"][1]["ipBlock"]["except"].pop(), "64:ff9b::a9fe:0/112 (link-local"),
    "metadata by name": (lambda d: egress(d)[0]["to"].append({"ipBlock": {"cidr": "169.254.169.254/32"}}),
                         "can be reached"),
    "every address": (lambda d: egress(d).append({"ports": [{"port": 443}]}), "lets everything out"),
    "every port": (lambda d: egress(d)[1].pop("ports"), "lets everything out"),
    "plain HTTP": (lambda d: egress(d)[1]["ports"].append({"protocol": "TCP", "port": 80}), "ports ['80'] are open"),
    "ingress open": (lambda d: only(d, "NetworkPolicy")["spec"]["policyTypes"].remove("Ingress"),
                     "must be Ingress and Egress"),
    "no policy": (lambda d: d.remove(only(d, "NetworkPolicy")), "no NetworkPolicy selects it"),
    "another label": (lambda d: job(d)["template"]["metadata"]["labels"].clear(), "no NetworkPolicy selects it"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_manifest_is_refused(manifests: dict[str, list[Document]], name: str) -> None:
    documents = copy.deepcopy(manifests["base"])
    change, reason = MUTATIONS[name]
    change(documents)
    assert any(reason in fault for fault in rules.faults(documents)), rules.faults(documents)


def test_a_queue_that_would_never_admit_is_refused(manifests: dict[str, list[Document]]) -> None:
    documents = copy.deepcopy(manifests["overlays/kueue-spot"])
    only(documents, "ClusterQueue")["spec"]["resourceGroups"][0]["coveredResources"].remove("ephemeral-storage")
    assert "ephemeral-storage not covered" in "".join(rules.faults(documents))


WEBHOOKS: list[tuple[str, str, Break, str]] = [
    (
        "overlays/jobset",
        "JobSet",
        lambda d: d["spec"]["replicatedJobs"][0]["template"]["spec"].pop("completionMode"),
        "second apply",
    ),
    ("overlays/jobset", "JobSet", lambda d: d["metadata"].update(name="8b-0123456789"), "begin with a letter"),
    ("overlays/trainer", "TrainJob", lambda d: d["metadata"].update(name="8b-0123456789"), "begin with a letter"),
    (
        "overlays/trainer",
        "TrainJob",
        lambda d: d["spec"]["runtimePatches"][0].update(manager="tunejob"),
        "does not begin with a domain",
    ),
    ("overlays/example", "Job", lambda d: d.update(kind="Namespace", spec={}), "deleted with its Secrets"),
]


@pytest.mark.parametrize(("overlay", "kind", "change", "reason"), WEBHOOKS)
def test_what_a_webhook_would_refuse_is_refused(
    manifests: dict[str, list[Document]], overlay: str, kind: str, change: Break, reason: str
) -> None:
    documents = copy.deepcopy(manifests[overlay])
    assert reason not in "".join(rules.faults(documents))
    change(only(documents, kind))  # type: ignore[arg-type]
    assert reason in "".join(fault for rule in (rules.controllers, rules.deletions) for fault in rule(documents))


def test_a_namespace_on_the_clusters_objects_is_refused(manifests: dict[str, list[Document]]) -> None:
    documents = copy.deepcopy(manifests["overlays/trainer"])
    only(documents, "ClusterTrainingRuntime")["metadata"]["namespace"] = "tunejob"
    assert "a cluster's object has no namespace" in "".join(rules.faults(documents))


@pytest.mark.parametrize(("kind", "key"), [("TrainJob", "trainer"), ("ClusterTrainingRuntime", "mlPolicy")])
def test_several_nodes_are_refused(manifests: dict[str, list[Document]], kind: str, key: str) -> None:
    documents = copy.deepcopy(manifests["overlays/trainer"])
    only(documents, kind)["spec"][key]["numNodes"] = 2
    assert "not the 1 GPU in one pod" in "".join(rules.faults(documents))
