"""A TrainJob of Kubeflow Trainer and the runtime it refers to: `k8s/components/trainer` for a spec.

The runtime is the cluster's and the same for every spec; image, resources and scratch of one run are the TrainJob's.
"""

from __future__ import annotations

from job.render.jobset import member
from job.render.kubernetes import manifests
from job.render.machines import environment, network, tried_again
from job.render.pod import JOB, RUNTIME, TRAINJOB, batch_job, of_its_own, shipped
from job.render.rendering import Rendering
from job.render.text import Json

NODE, SEVERAL = "node", "-machines"  # the Job of a TrainJob; the end of the name of their runtime
OF_THE_SPEC = ("spec", "scratch")  # volumes that the runtime cannot know


def trainjob(task: Rendering) -> str:
    return manifests(task, runtime(several=task.spec.resources.nodes > 1), train_job(task))


def runtime(several: bool = False) -> Json:
    """How tunejob runs in this cluster, without a spec; with another name for `several` machines, which have names."""
    made = shipped(RUNTIME)
    (node,) = made["spec"]["template"]["spec"]["replicatedJobs"]
    spec = member(shipped(JOB)["spec"])
    if several:
        made["metadata"]["name"] += SEVERAL
        made["spec"]["template"]["spec"]["network"] = network()
        tried_again(spec)
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            rule["onExitCodes"]["containerName"] = node["name"]
    pod = spec["template"]["spec"]
    pod["containers"][0]["name"] = node["name"]
    for holder, key in (pod, "volumes"), (pod["containers"][0], "volumeMounts"):
        holder[key] = [item for item in holder[key] if item["name"] != "spec"]
    node["template"]["spec"] |= spec
    return made


def train_job(task: Rendering) -> Json:
    """Which spec, image and resources."""
    job, made = batch_job(task), shipped(TRAINJOB)
    made["metadata"] = job["metadata"]
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    made["spec"]["trainer"] |= {
        "image": container["image"],
        "args": container["args"],
        "resourcesPerNode": container["resources"],
    }
    if (nodes := task.spec.resources.nodes) > 1:
        made["spec"]["trainer"] |= {"numNodes": nodes, "env": environment(task, NODE)}
        made["spec"]["runtimeRef"]["name"] += SEVERAL
    patch = made["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    own = patch["template"]["spec"]["template"]["spec"]
    own |= of_its_own(task.options)
    own["volumes"] = [volume for volume in pod["volumes"] if volume["name"] in OF_THE_SPEC]
    return made
