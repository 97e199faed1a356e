"""A GitHub Actions workflow for one spec: checked on pull requests, on demand submitted to a cluster and followed to
its end.

It uses no action, so there is none to pin: git, Python and kubectl of the runner do everything, with the few packages
of `locks/light.txt`. The image is the Job's alone. What a reviewer sees in the pull request is what is applied.
"""

from __future__ import annotations

from job.errors import SpecError
from job.render.image import words_for_nodes
from job.render.kubernetes import job
from job.render.options import EXPECTED
from job.render.rendering import Rendering
from job.render.shell import S3_SECRETS, SECRETS, SETTINGS
from job.render.text import Json, documents, word

RUNNER = "ubuntu-24.04"
PLACE = "tunejob"  # the environment of the repository that holds the secrets
VALIDATE_MINUTES = 10
WAIT_MINUTES = 360  # GitHub's own limit for its runners; the Job goes on, and another dispatch follows the same one
KUBECONFIG = '"$RUNNER_TEMP/kubeconfig"'
COMMAND = 'PYTHONPATH="$RUNNER_TEMP/tunejob" "$RUNNER_TEMP/light/bin/python" -m job'
READ_SECRETS = [name for name in SECRETS if name.startswith("AWS")]
READ_SETTINGS = [name for name in SETTINGS if name.startswith("AWS")]


def actions(task: Rendering) -> str:
    file = f".github/workflows/tunejob-{task.spec.name}.yml"
    header = [
        f"Keep it as {file}. Its secrets, once: the kubeconfig of somebody who may create Jobs",
        "in the namespace, and for the report keys that may read the output. The Job's own are in the cluster (below).",
        f'  gh api --method PUT "repos/{{owner}}/{{repo}}/environments/{PLACE}"',
        f"  gh secret set KUBECONFIG --env {PLACE} < kubeconfig",
        *(f"  gh secret set {name} --env {PLACE}" for name in S3_SECRETS),
        *words_for_nodes(task.options.image, task.options.image_with),
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
    """Without secrets, as a pull request may come from anybody."""
    return {
        "name": "Validate",
        "runs-on": RUNNER,
        "timeout-minutes": VALIDATE_MINUTES,
        "steps": [
            _command(task),
            {"name": "Check the spec", "run": f"printf %s {word(task.text)} |\n  {COMMAND} validate -\n"},
        ],
    }


def _command(task: Rendering) -> Json:
    """Sources of one commit and the packages of its lock, by their hashes: a few megabytes, no torch, nothing built."""
    source = task.options.source
    if source is None:
        expected, hint = EXPECTED["--source"]
        needed = "--to actions needs --source, from which it takes the command: no release is out yet"
        raise SpecError(needed, expected=expected, hint=hint)
    lines = [
        'git init --quiet "$RUNNER_TEMP/tunejob"',
        'cd "$RUNNER_TEMP/tunejob"',
        f"git fetch --quiet --depth 1 {word(source.url)} {word(source.ref)}",
        "git checkout --quiet FETCH_HEAD",
        'python3 -m venv "$RUNNER_TEMP/light"',
        '"$RUNNER_TEMP/light/bin/pip" install --quiet --no-deps --require-hashes -r locks/light.txt',
    ]
    return {"name": "The tunejob command, without torch", "run": "\n".join(lines) + "\n"}


def _run(task: Rendering) -> Json:
    keep = f"umask 077\nprintf '%s\\n' \"$TEXT\" > {KUBECONFIG}\n"
    submit = f"printf %s {word(job(task))} |\n  kubectl --kubeconfig {KUBECONFIG} apply -f -\n"
    read = {name: f"${{{{ secrets.{name} }}}}" for name in READ_SECRETS} | {
        name: f"${{{{ vars.{name} }}}}" for name in READ_SETTINGS
    }
    return {
        "name": "Run",
        "needs": "validate",
        "if": "github.event_name == 'workflow_dispatch'",
        "runs-on": RUNNER,
        "environment": PLACE,
        "timeout-minutes": WAIT_MINUTES,
        "steps": [
            _command(task),
            {"name": "Reach the cluster", "env": {"TEXT": "${{ secrets.KUBECONFIG }}"}, "run": keep},
            {"name": "Submit the Job", "run": submit},
            {"name": "Follow it to its end", "env": read, "run": _follow(task)},
        ],
    }


def _follow(task: Rendering) -> str:
    """Exits with the code of the run; outcome and report become the summary of the workflow."""
    namespace = f" --namespace {task.options.namespace}" if task.options.namespace else ""
    return f"""\
# An unset secret is an empty variable, which boto3 would take for a value.
for name in "${{!AWS_@}}"; do [ -n "${{!name}}" ] || unset "$name"; done
# What the log says must not be taken for a command of this workflow.
resume=$(python3 -c 'import secrets; print(secrets.token_hex())')
echo "::stop-commands::$resume"
code=0
KUBECONFIG={KUBECONFIG} {COMMAND} wait {task.name}{namespace} --summary "$GITHUB_STEP_SUMMARY" || code=$?
echo "::$resume::"
exit "$code"
"""
