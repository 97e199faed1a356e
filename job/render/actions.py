"""A GitHub Actions workflow for one spec: checked on pull requests, on demand submitted to a cluster and followed to
its end.

It uses no action, so there is none to pin: the runner's docker and kubectl and the image do everything. What a
reviewer sees in the pull request is what is applied.
"""

from __future__ import annotations

from job.render.kubernetes import job
from job.render.rendering import Rendering
from job.render.shell import SECRETS, SETTINGS
from job.render.text import Json, documents, word

RUNNER = "ubuntu-24.04"
PLACE = "tunejob"  # the environment of the repository that holds the secrets
VALIDATE_MINUTES = 30
WAIT_MINUTES = 360  # GitHub's own limit for its runners; the Job goes on, and another dispatch follows the same one
KUBECONFIG = '"$RUNNER_TEMP/kubeconfig"'
S3_SECRETS = [name for name in SECRETS if name.startswith("AWS")]
S3_SETTINGS = [name for name in SETTINGS if name.startswith("AWS")]


def actions(task: Rendering) -> str:
    file = f".github/workflows/tunejob-{task.spec.name}.yml"
    header = [
        f"Keep it as {file}. Secrets of the environment {PLACE}: KUBECONFIG (a token that may create Jobs in the namespace)",  # noqa: E501
        "and, for the report, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY that may read the output.",
        *task.needs.words(),
    ]
    workflow = {
        "name": f"tunejob {task.spec.name}",
        "on": {"pull_request": {"paths": [file]}, "workflow_dispatch": {}},
        "permissions": {},
        "concurrency": {"group": f"tunejob-{task.spec.name}-${{{{ github.ref }}}}", "cancel-in-progress": False},
        "defaults": {"run": {"shell": "bash"}},
        "jobs": {"validate": _validate(task), "run": _run(task)},
    }
    return documents(header, workflow)


def _validate(task: Rendering) -> Json:
    """Without secrets and without a network, as a pull request may come from anybody."""
    check = f"docker run --rm --interactive --network none --read-only {task.options.image} validate -"
    return {
        "name": "Validate",
        "runs-on": RUNNER,
        "timeout-minutes": VALIDATE_MINUTES,
        "steps": [{"name": "Check the spec", "run": f"printf %s {word(task.text)} |\n  {check}\n"}],
    }


def _run(task: Rendering) -> Json:
    keep = f"umask 077\nprintf '%s\\n' \"$TEXT\" > {KUBECONFIG}\n"
    submit = f"printf %s {word(job(task))} |\n  kubectl --kubeconfig {KUBECONFIG} apply -f -\n"
    read = {name: f"${{{{ secrets.{name} }}}}" for name in S3_SECRETS} | {
        name: f"${{{{ vars.{name} }}}}" for name in S3_SETTINGS
    }
    return {
        "name": "Run",
        "needs": "validate",
        "if": "github.event_name == 'workflow_dispatch'",
        "runs-on": RUNNER,
        "environment": PLACE,
        "timeout-minutes": WAIT_MINUTES,
        "steps": [
            {"name": "Reach the cluster", "env": {"TEXT": "${{ secrets.KUBECONFIG }}"}, "run": keep},
            {"name": "Submit the Job", "run": submit},
            {"name": "Follow it to its end", "env": read, "run": _follow(task)},
        ],
    }


def _follow(task: Rendering) -> str:
    """Exits with the code of the run; outcome and report become the summary of the workflow."""
    namespace = f" --namespace {task.options.namespace}" if task.options.namespace else ""
    return f"""\
options=()
for name in {" ".join([*S3_SECRETS, *S3_SETTINGS])}; do
  [ -z "${{!name}}" ] || options+=(--env "$name")
done
docker run --rm --read-only --user "$(id -u):0" --tmpfs /scratch --tmpfs /tmp "${{options[@]}}" \\
  --volume "$(command -v kubectl):/usr/local/bin/kubectl:ro" \\
  --volume {KUBECONFIG}:/etc/tunejob/kubeconfig:ro --env KUBECONFIG=/etc/tunejob/kubeconfig \\
  --volume "$GITHUB_STEP_SUMMARY:/etc/tunejob/summary.md" \\
  {task.options.image} wait {task.name}{namespace} --summary /etc/tunejob/summary.md
"""
