"""What kubectl would answer, step by step, and an executable named kubectl that replays it.

The boundary is the program `kubectl`: objects have the shape of the Kubernetes API (batch/v1 Job, v1 Pod, v1 Event) and
the program takes exactly the commands that `tunejob wait` is known to use; anything else ends it with 2.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from job.__main__ import report_failure
from job.arguments import parser
from job.commands import command_wait
from job.errors import JobError
from job.host.log import Log

Json = dict[str, Any]
NAME, NAMESPACE = "tunejob-spec-7d9f8", "tuning"
# $now is the step the cluster is at: each look at the Job goes on to the next one.
PROGRAM = """#!/bin/sh
cd {folder}
echo "$*" >> commands
now=$(cat step)
answer() {{ if [ -f "$1" ]; then cat "$1"; else cat "$1.said" >&2; exit 1; fi; }}
look() {{
  if [ "$now" -lt {last} ]; then now=$((now + 1)); fi
  echo "$now" > step.new; mv step.new step; answer "steps/$now/job"
}}
json="--output json --request-timeout 60s"
of_job="involvedObject.kind=Job,involvedObject.name={job}"
case "$*" in
  "--namespace {namespace} get job {name} $json") look ;;
  "--namespace {namespace} get jobs --selector jobset.sigs.k8s.io/jobset-name={name} $json") look ;;
  "--namespace {namespace} get jobsets.jobset.x-k8s.io {name} $json") answer "steps/$now/owner" ;;
  "--namespace {namespace} get trainjobs.trainer.kubeflow.org {name} $json") answer "steps/$now/owner" ;;
  "--namespace {namespace} get pods --selector batch.kubernetes.io/job-name={job} $json") answer "steps/$now/pods" ;;
  "--namespace {namespace} get events --field-selector $of_job,type=Warning $json")
    answer "steps/$now/events" ;;
  "--namespace {namespace} logs {job}-"*" --container {container} --follow --timestamps --request-timeout 600s"*)
    if [ -f "steps/$now/hangs.$4" ]; then exec sleep 60; fi
    if [ -f "steps/$now/log.$4" ]; then cat "steps/$now/log.$4"; fi
    if [ -f "steps/$now/hindrance" ]; then cat "steps/$now/hindrance" >&2; exit 1; fi ;;
  *) exit 2 ;;
esac
"""


@dataclass(frozen=True)
class Step:
    """The cluster at one moment; `job` is an object, or what kubectl says on stderr instead of one; `hindrance` ends
    `logs` so, and those of pods that hang never end. `owner`: the JobSet or TrainJob.
    """

    job: Json | str
    pods: list[Json] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    hindrance: str = ""
    hangs: tuple[str, ...] = ()
    events: list[Json] | str = field(default_factory=list)
    owner: Json | str = ""


NOT_FOUND = f'Error from server (NotFound): jobs.batch "{NAME}" not found'


def job(*conditions: Json, name: str = NAME, container: str = "tunejob") -> Json:
    codes = {"containerName": container, "operator": "In", "values": [10, 11, 12, 13, 14]}
    policy = {"rules": [{"action": "Ignore", "onPodConditions": []}, {"action": "FailJob", "onExitCodes": codes}]}
    suspended = any(c["type"] == "Suspended" for c in conditions)
    spec = {"backoffLimit": 2, "suspend": suspended, "podFailurePolicy": policy, "template": {}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": spec,
        "status": {"conditions": list(conditions)},
    }


def condition(kind: str, reason: str = "", message: str = "") -> Json:
    return {"type": kind, "status": "True", "reason": reason, "message": message}


def pod(
    number: int,
    state: Json,
    *conditions: Json,
    phase: str = "Running",
    reason: str | None = None,
    job: str = NAME,
    name: str = "tunejob",
    node: str = "",
) -> Json:
    """The `number`th pod of the Job, beside a sidecar that never ends; `state` of our container, {} for none yet."""
    container = [{"name": "mesh", "state": {"running": {}}}, *([{"name": name, "state": state}] if state else [])]
    status = {
        "phase": phase,
        "conditions": list(conditions),
        "containerStatuses": container,
        **({"reason": reason} if reason else {}),
    }
    metadata = {"name": f"{job}-{number}", "creationTimestamp": f"2026-11-21T10:0{number}:00Z"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": node} if node else {},
        "status": status,
    }


def event(message: str, at: str = "2026-11-21T10:00:30Z", reason: str = "FailedCreate") -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }


RUNNING: Json = {"running": {"startedAt": "2026-11-21T10:00:05Z"}}


def ended(exit_code: int, message: str = "", reason: str = "") -> Json:
    return {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason or ("Error" if exit_code else "Completed"),
            "message": message,
        }
    }


def line(event: str, **fields: Any) -> str:
    return json.dumps({"time": "2026-11-21T10:01:00Z", "event": event, **fields})


def replay(folder: Path, steps: list[Step], job: str = NAME, container: str = "tunejob") -> Path:
    """Writes the program and what it will say; returns the folder for PATH. `job`: name of the Job if not `NAME`."""
    for number, step in enumerate(steps):
        place = folder / "steps" / str(number)
        place.mkdir(parents=True)
        found: Json | str = step.job
        if job != NAME and not isinstance(found, str):
            found = {"kind": "List", "items": [found] if found else []}
        answers: dict[str, Json | str] = {
            "job": found,
            "pods": {"kind": "List", "items": step.pods},
            "owner": step.owner,
        }
        answers["events"] = step.events if isinstance(step.events, str) else {"kind": "List", "items": step.events}
        for name, answer in answers.items():
            if isinstance(answer, str):
                (place / f"{name}.said").write_text(answer + "\n")
            else:
                (place / name).write_text(json.dumps(answer))
        for name, texts in step.logs.items():
            stamped = (f"2026-11-21T10:00:00.{i:09}Z {text}\n" for i, text in enumerate(texts, 1))
            (place / f"log.{name}").write_text("".join(stamped), "utf-8")
        for name in step.hangs:
            (place / f"hangs.{name}").touch()
        if step.hindrance:
            (place / "hindrance").write_text(step.hindrance + "\n")
    (folder / "step").write_text("-1\n")
    program = folder / "kubectl"
    last = len(steps) - 1
    program.write_text(
        PROGRAM.format(folder=folder, last=last, name=NAME, namespace=NAMESPACE, job=job, container=container)
    )
    program.chmod(0o755)
    return folder


@dataclass(frozen=True)
class Waited:
    exit_code: int
    lines: list[str]
    events: list[Json]
    summary: str
    commands: list[str]

    def waiting_for(self) -> list[str]:
        return [event["waiting_for"] for event in self.events if "waiting_for" in event]


def command(folder: Path, target: str = f"job.batch/{NAME}", patience: str = "0.3") -> list[str]:
    times = ["--poll-seconds", "0.01", "--patience-seconds", patience]
    return ["wait", target, "--namespace", NAMESPACE, *times, "--summary", str(folder / "summary.md")]


def wait(folder: Path, steps: list[Step], target: str = f"job.batch/{NAME}", patience: str = "0.3", job: str = NAME,
         container: str = "tunejob", **environment: str) -> Waited:  # fmt: skip
    """What `tunejob wait` does, against the replayed cluster, in this process."""
    replay(folder, steps, job, container)
    said = io.StringIO()
    variables = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "TUNEJOB_TERMINATION_LOG": str(folder / "last"),
        **environment,
    }
    with mock.patch.dict(os.environ, variables):
        log = Log(said, json_lines=True)
        try:
            code = command_wait(parser().parse_args(command(folder, target, patience)), log)
        except JobError as error:
            code = report_failure(error, "wait", log)
    lines = said.getvalue().splitlines()
    events = [json.loads(text) for text in lines if text.startswith("{")]
    summary = folder / "summary.md"
    commands = folder / "commands"
    return Waited(
        code,
        lines,
        events,
        summary.read_text() if summary.exists() else "",
        commands.read_text().splitlines() if commands.exists() else [],
    )
