"""`k8s/components/jobset` for a spec: a JobSet with the Job as its only member, for clusters that queue JobSets."""

from __future__ import annotations

from job.render.kubernetes import manifests
from job.render.machines import environment, network, tried_again
from job.render.pod import JOBSET, batch_job, shipped
from job.render.rendering import Rendering
from job.render.text import Json


def member(spec: Json) -> Json:
    """A Job's `spec` for a set that removes its Jobs itself."""
    return {key: value for key, value in spec.items() if key != "ttlSecondsAfterFinished"}


def jobset(task: Rendering) -> str:
    job, made = batch_job(task), shipped(JOBSET)
    made["metadata"] = job["metadata"]
    (tune,) = made["spec"]["replicatedJobs"]
    tune["template"]["spec"] |= member(job["spec"])
    if (nodes := task.spec.resources.nodes) > 1:
        made["spec"]["network"] = network()
        tune["template"]["spec"] |= {"parallelism": nodes, "completions": nodes}
        tried_again(tune["template"]["spec"])
        job["spec"]["template"]["spec"]["containers"][0]["env"] += environment(task, tune["name"])
    return manifests(task, made)
