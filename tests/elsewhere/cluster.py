"""What kubectl would answer, step by step, and an executable named kubectl that replays it.

The boundary is the program `kubectl`: objects have the shape of the Kubernetes API (batch/v1 Job, v1 Pod) and the program
takes exactly the commands that `tunejob wait` is known to use; anything else ends it with 2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]
NAME, NAMESPACE = "tunejob-spec-7d9f8", "tuning"
PROGRAM = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
steps = json.loads((folder / "steps.json").read_text())
counter = folder / "step"
arguments = sys.argv[1:]
with (folder / "commands").open("a") as commands:
    commands.write(" ".join(arguments) + "\\n")
if arguments[:2] != ["--namespace", {namespace!r}]:
    sys.exit(2)
now = int(counter.read_text()) if counter.exists() else -1
match arguments[2:]:
    case ["get", "job", {name!r}, "--output", "json"]:
        now = min(now + 1, len(steps) - 1)
        counter.write_text(str(now))
        answer = steps[now]["job"]
    case ["get", "pods", "--selector", "batch.kubernetes.io/job-name={name}", "--output", "json"]:
        answer = {{"kind": "List", "items": steps[now]["pods"]}}
    case ["logs", pod, "--container", "tunejob", "--follow", "--timestamps", "--request-timeout", "600s", *since]:
        after = since[1] if since and since[0] == "--since-time" else ""
        print("\\n".join(f"{{time}} {{line}}" for time, line in steps[now]["logs"].get(pod, ()) if time >= after))
        sys.exit(steps[now]["hindrance"] or 0)
    case _:
        sys.exit(2)
if isinstance(answer, str):
    sys.exit(answer)
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Step:
    """The cluster at one moment; `job` is an object, or what kubectl says on stderr instead of one; `hindrance` ends `logs` so."""

    job: Json | str
    pods: list[Json] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    hindrance: str = ""


NOT_FOUND = f'Error from server (NotFound): jobs.batch "{NAME}" not found'


def job(*conditions: Json) -> Json:
    spec = {"backoffLimit": 2, "suspend": any(c["type"] == "Suspended" for c in conditions), "template": {}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": NAME}, "spec": spec, "status": {"conditions": list(conditions)}}


def condition(kind: str, reason: str = "", message: str = "") -> Json:
    return {"type": kind, "status": "True", "reason": reason, "message": message}


def pod(number: int, state: Json, *conditions: Json, phase: str = "Running", reason: str | None = None) -> Json:
    """The `number`th pod of the Job, beside a sidecar that never ends; `state` of our container, {} for none yet."""
    container = [{"name": "mesh", "state": {"running": {}}}, *([{"name": "tunejob", "state": state}] if state else [])]
    status = {"phase": phase, "conditions": list(conditions), "containerStatuses": container, **({"reason": reason} if reason else {})}
    metadata = {"name": f"{NAME}-{number}", "creationTimestamp": f"2026-11-21T10:0{number}:00Z"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}


RUNNING: Json = {"running": {"startedAt": "2026-11-21T10:00:05Z"}}


def ended(exit_code: int, message: str = "", reason: str = "") -> Json:
    return {"terminated": {"exitCode": exit_code, "reason": reason or ("Error" if exit_code else "Completed"), "message": message}}


def line(event: str, **fields: Any) -> str:
    return json.dumps({"time": "2026-11-21T10:01:00Z", "event": event, **fields})


def replay(folder: Path, steps: list[Step]) -> Path:
    """Writes the program and what it will say; returns the folder to put on PATH."""
    stamped = [
        {"job": s.job, "hindrance": s.hindrance, "pods": s.pods,
         "logs": {name: [(f"2026-11-21T10:00:00.{i:09}Z", text) for i, text in enumerate(told, 1)] for name, told in s.logs.items()}}
        for s in steps
    ]  # fmt: skip
    (folder / "steps.json").write_text(json.dumps(stamped))
    program = folder / "kubectl"
    program.write_text(PROGRAM.format(python=sys.executable, folder=str(folder), name=NAME, namespace=NAMESPACE))
    program.chmod(0o755)
    return folder


@dataclass(frozen=True)
class Waited:
    exit_code: int
    lines: list[str]
    events: list[Json]
    summary: str
    commands: list[str]


def wait(folder: Path, steps: list[Step], **environment: str) -> Waited:
    """`tunejob wait` as a CI step runs it, against the replayed cluster."""
    replay(folder, steps)
    summary = folder / "summary.md"
    command = [sys.executable, "-m", "job", "wait", f"job.batch/{NAME}", "--namespace", NAMESPACE, "--poll-seconds", "0.01"]
    variables = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
    done = subprocess.run([*command, "--summary", str(summary)], env=variables, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    events = [json.loads(text) for text in lines if text.startswith("{")]
    told = summary.read_text() if summary.exists() else ""
    return Waited(done.returncode, lines, events, told, (folder / "commands").read_text().splitlines())
