"""Documents against official schemas; runs in `.venv-k8s`, which has them.

    python check_schemas.py VERSION ... < {"name": [document, ...]}        prints a JSON list of what is wrong

Core kinds: the schemas of each named Kubernetes version, strict (unknown fields are faults). TrainJob,
ClusterTrainingRuntime and JobSet: the models of kubeflow-trainer-api, which drop unknown fields without a word, so that
what comes back out of them must equal what went in; the Jobs inside them, the schemas of Kubernetes. Kueue: the schema
beside this file. Any other kind is a fault.
"""

import json
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
from kubeflow_trainer_api import models

MODELS = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): models.JobsetV1alpha2JobSet,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): models.TrainerV1alpha1TrainJob,
    ("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime"): models.TrainerV1alpha1ClusterTrainingRuntime,
}
KUEUE = json.loads((Path(__file__).parent / "kueue.schema.json").read_text("utf-8"))


def check(document, version):
    """Yields what is wrong with one document."""
    kind = (document["apiVersion"], document["kind"])
    if kind in MODELS:
        yield from check_model(document, MODELS[kind])
        for job in jobs_inside(document):
            yield from check(job, version)
    elif document["apiVersion"].startswith("kueue.x-k8s.io/"):
        for error in jsonschema.Draft202012Validator(KUEUE).iter_errors(document):
            yield f"{error.json_path}: {error.message}"
    else:
        yield from check_core(document, version)


def check_core(document, version):
    try:
        used = kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'/'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"unknown kind: {error.message}"
    else:
        if not version.startswith(used):
            yield f"there are no schemas of Kubernetes {version}, only {used}"


def check_model(document, model):
    try:
        back = model.from_dict(document).to_dict()
    except ValueError as error:
        yield str(error)
        return
    if back != document:
        yield f"unknown fields: {sorted(pointers(document) - pointers(back))}"


def pointers(value, pointer=""):
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {pointer}.union(*(pointers(child, f"{pointer}/{key}") for key, child in children))


def jobs_inside(document):
    spec = document["spec"]
    holder = spec["template"]["spec"] if document["kind"] == "ClusterTrainingRuntime" else spec
    for job in holder.get("replicatedJobs", []):
        yield {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job["name"]},
            "spec": job["template"]["spec"],
        }


def main(versions, manifests):
    """A fault for each document that is wrong; the same document in several places is checked once."""
    found = {}
    for name, documents in manifests.items():
        for document in documents:
            for version in versions:
                key = (json.dumps(document, sort_keys=True), version)
                if key not in found:
                    found[key] = list(check(document, version))
                yield from (f"{name}: {document['kind']}, Kubernetes {version}: {fault}" for fault in found[key])


if __name__ == "__main__":
    json.dump(list(main(sys.argv[1:], json.load(sys.stdin))), sys.stdout)
