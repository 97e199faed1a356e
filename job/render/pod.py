"""The pod: `k8s/base/job.yaml` with the resources of a spec (tests/unit/test_render_kubernetes.py compares the two)."""

from __future__ import annotations

from collections.abc import Callable

from job.errors import tree as errors
from job.plan.machine import GIB, Resources
from job.render.text import Json

APP = "tunejob"
CONTAINER = "tunejob"
NAME_LABEL = {"app.kubernetes.io/name": APP}
LABELS = NAME_LABEL | {"app.kubernetes.io/component": "job"}
SPEC_KEY = "spec.json"
SPEC_FOLDER = "/etc/tunejob"
SECRETS = ("tunejob-s3", "tunejob-hub")
UID = 10001
GRACE_SECONDS = 120
STOP_SECONDS = 100  # less than the grace period: the last words are said before the kill
BACKOFF_LIMIT = 2
KEPT_SECONDS = 7 * 86_400
MOUNTS = {"spec": SPEC_FOLDER, "scratch": "/scratch", "tmp": "/tmp", "dshm": "/dev/shm"}  # noqa: S108 (the pod's, not ours)


def gibibytes(size: int) -> str:
    return f"{size // GIB}Gi"


def exit_codes(chosen: Callable[[type[errors.JobError]], bool]) -> list[int]:
    return sorted(kind.exit_code for kind in errors.TREE if chosen(kind))


def hopeless_codes() -> list[int]:
    """Exit codes of failures that a retry would meet again."""
    return exit_codes(lambda kind: not kind.retryable)


def retryable_codes() -> list[int]:
    """Exit codes of failures that a retry may not meet, the stop by a signal among them."""
    return exit_codes(lambda kind: kind.retryable)


def failure_policy() -> Json:
    """In order, the first match decides; what matches none counts against the backoff limit."""
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    stopped = exit_codes(lambda kind: kind is errors.Interrupted)
    return {"rules": [disrupted, _on_codes("FailJob", hopeless_codes()), _on_codes("Ignore", stopped)]}


def _on_codes(action: str, codes: list[int]) -> Json:
    return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": codes}}


def job_spec(image: str, config_map: str, needs: Resources) -> Json:
    """`spec` of a batch/v1 Job."""
    return {
        "backoffLimit": BACKOFF_LIMIT,
        "activeDeadlineSeconds": needs.deadline_seconds,
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": failure_policy(),
        "template": {"metadata": {"labels": LABELS}, "spec": pod_spec(image, config_map, needs)},
    }


def pod_spec(image: str, config_map: str, needs: Resources) -> Json:
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "serviceAccountName": APP,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": 0,
            "fsGroup": 0,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(image, needs)],
        "volumes": [
            {"name": "spec", "configMap": {"name": config_map}},
            {"name": "scratch", "emptyDir": {"sizeLimit": gibibytes(needs.scratch_bytes)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": gibibytes(needs.tmp_bytes)}},
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": gibibytes(needs.shm_bytes)}},
        ],
    }


def container(image: str, needs: Resources) -> Json:
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["run", f"{SPEC_FOLDER}/{SPEC_KEY}"],
        "env": [
            {"name": "AWS_EC2_METADATA_DISABLED", "value": "true"},
            {"name": "TUNEJOB_STOP_SECONDS", "value": str(STOP_SECONDS)},
        ],
        "envFrom": [{"secretRef": {"name": name, "optional": True}} for name in SECRETS],
        "resources": requirements(needs),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": name, "mountPath": path} | ({"readOnly": True} if name == "spec" else {})
            for name, path in MOUNTS.items()
        ],
    }


def requirements(needs: Resources) -> Json:
    held = {
        "memory": gibibytes(needs.memory_bytes),
        "ephemeral-storage": gibibytes(needs.ephemeral_bytes),
        "nvidia.com/gpu": "1",
    }
    return {"requests": {"cpu": str(needs.cpu_request)} | held, "limits": {"cpu": str(needs.cpu_limit)} | held}
