"""Waits for a Kubernetes Job with kubectl, its log passed on: `tunejob wait NAME`. What CI runs after it has
submitted one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterable
from typing import Any

from job.errors import Fault, InputError, Interrupted, TransientError
from job.follow.outcome import UNKNOWN, Attempt, Outcome, Told
from job.host.log import Log

Json = dict[str, Any]
CONTAINER = "tunejob"
JOB_LABEL = "batch.kubernetes.io/job-name"
PATIENCE = 12  # failed requests in a row before the cluster counts as gone
REFUSALS = (
    "Forbidden",
    "Unauthorized",
    "You must be logged in",
    "no configuration has been provided",
    "doesn't have a resource type",
)
QUEUED = {"Suspended": "queued: the Job is suspended"}
ENDS = {"Complete": 0, "Failed": UNKNOWN}
DEADLINE = "DeadlineExceeded"
FOLLOW_SECONDS = 600  # then the connection is made anew: that of a node which is gone would hang
CUT = "Client.Timeout"  # how kubectl says that it was


class Kubectl:
    """Reads from one namespace; None stands for the context's own. What hinders reading a log is told once, and no
    failure.
    """

    def __init__(self, namespace: str | None, pause_seconds: float, log: Log) -> None:
        if shutil.which("kubectl") is None:
            raise InputError(Fault("kubectl is not installed", expected="kubectl on PATH, with access to the cluster"))
        self._command = ["kubectl", *(["--namespace", namespace] if namespace else [])]
        self._pause_seconds = pause_seconds
        self._log = log
        self._hindrance = ""

    def get(self, *arguments: str) -> Json | None:
        """The parsed answer of `kubectl get`; None if it is not there. Raises `InputError` or, in the end,
        `TransientError`.
        """
        said = ""
        for _ in range(PATIENCE):
            command = [*self._command, "get", *arguments, "--output", "json"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode == 0:
                return dict(json.loads(done.stdout))
            said = done.stderr.strip()
            if "NotFound" in said:
                return None
            if any(word in said for word in REFUSALS):
                raise InputError(Fault("the cluster refuses", found=said))
            time.sleep(self._pause_seconds)
        raise TransientError(Fault(f"the cluster did not answer {PATIENCE} times", found=said))

    def logs(self, pod: str, since: str) -> Iterable[tuple[str, str]]:
        """Time and text of each line that the container has said after `since`, until it ends or the connection
        does.
        """
        command = [*self._command, "logs", pod, "--container", CONTAINER, "--follow", "--timestamps"]
        command += ["--request-timeout", f"{FOLLOW_SECONDS}s", *(["--since-time", since] if since else [])]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace") as process:  # noqa: S603
            for line in process.stdout or ():
                said_at, _, text = line.rstrip("\n").partition(" ")
                if said_at > since:
                    yield said_at, text
            hindrance = process.stderr.read().strip() if process.stderr else ""
        if process.returncode and CUT not in hindrance and hindrance != self._hindrance:
            self._log("job", note="the log cannot be read", reason=hindrance)
            self._hindrance = hindrance


class JobWatch:
    """One Job from now to its end."""

    def __init__(self, name: str, kubectl: Kubectl, log: Log) -> None:
        self.name = name
        self._kubectl = kubectl
        self._log = log
        self._pods: dict[str, Json] = {}
        self._told: dict[str, Told] = {}
        self._heard: dict[str, str] = {}  # time of each pod's last line
        self._state = ""
        self._seen = False

    def step(self) -> Outcome | None:
        """Looks once and follows what runs. The pods are read after the Job, so those of an ended Job are final."""
        job = self._kubectl.get("job", self.name)
        if job is None:
            return self._gone()
        self._seen = True
        answer = self._kubectl.get("pods", "--selector", f"{JOB_LABEL}={self.name}") or {"items": []}
        for pod in sorted(answer["items"], key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
            self._pods[pod["metadata"]["name"]] = pod
            if started(pod):
                self._follow(pod["metadata"]["name"])
        self._tell(waiting_for(job, answer["items"]))
        return self._ended(job)

    def _follow(self, pod: str) -> None:
        told = self._told.setdefault(pod, Told())
        for said_at, line in self._kubectl.logs(pod, self._heard.get(pod, "")):
            self._log.say(line)
            told.hear(line)
            self._heard[pod] = said_at

    def _tell(self, state: str) -> None:
        if state and state != self._state:
            self._log("job", name=self.name, waiting_for=state)
        self._state = state

    def _gone(self) -> Outcome:
        """Not there: never was, or deleted in between (a person, a time to live). A run that said it is done is
        done.
        """
        if not self._seen:
            raise InputError(Fault("there is no such Job", found=self.name, hint="Is the namespace right?"))
        attempts = self._attempts()
        ended = bool(attempts) and attempts[-1].exit_code == 0
        code = 0 if ended else Interrupted.exit_code
        return self._outcome(
            code, "the Job was deleted" + (" after it had finished" if ended else " before it had finished")
        )

    def _ended(self, job: Json) -> Outcome | None:
        condition = next((c for c in conditions(job) if c["type"] in ENDS), None)
        if condition is None:
            return None
        code = ENDS[condition["type"]]
        if code:
            known = [attempt.exit_code for attempt in self._attempts() if attempt.exit_code]
            code = known[-1] if known else Interrupted.exit_code if condition.get("reason") == DEADLINE else UNKNOWN
        reason = ": ".join(condition[key] for key in ("reason", "message") if condition.get(key))
        return self._outcome(code, reason or condition["type"])

    def _outcome(self, code: int, reason: str) -> Outcome:
        told = next((told for told in reversed(self._told.values()) if told.last), Told())
        return Outcome(self.name, code, reason, self._attempts(), told)

    def _attempts(self) -> list[Attempt]:
        return [attempt(pod, self._told.get(name, Told())) for name, pod in self._pods.items()]


def wait(watch: JobWatch, pause_seconds: float) -> Outcome:
    """The end of the watched Job, however long it takes: its own deadline bounds it."""
    while (outcome := watch.step()) is None:
        time.sleep(pause_seconds)
    return outcome


def conditions(resource: Json) -> list[Json]:
    """Those that hold."""
    return [c for c in resource.get("status", {}).get("conditions") or () if c["status"] == "True"]


def container_state(pod: Json) -> Json:
    """State of our container among those of the pod: `waiting`, `running` or `terminated`; empty before there
    is one.
    """
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return next((dict(status.get("state") or {}) for status in statuses if status["name"] == CONTAINER), {})


def started(pod: Json) -> bool:
    return not container_state(pod).keys().isdisjoint({"running", "terminated"})


def attempt(pod: Json, told: Told) -> Attempt:
    """What became of a pod, from its container's end; where that is missing, from what its log said last."""
    end = container_state(pod).get("terminated")
    disrupted = next(
        (f"{c['reason']}: {c.get('message', '')}" for c in conditions(pod) if c["type"] == "DisruptionTarget"), ""
    )
    facts = termination_facts(end or {}) or (told.last if told.exit_code else {})
    code = end["exitCode"] if end else told.exit_code
    reason = disrupted or pod.get("status", {}).get("reason") or (end or {}).get("reason") or "no end was seen"
    return Attempt(pod["metadata"]["name"], code, str(reason), facts)


def termination_facts(end: Json) -> Json:
    """The termination message, if it is ours (schemas/failure.schema.json)."""
    try:
        facts = json.loads(end.get("message") or "")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) and "exit_code" in facts else {}


def waiting_for(job: Json, pods: list[Json]) -> str:
    """Why nothing runs, in the cluster's words; empty while something does or all is over."""
    held = {c["type"] for c in conditions(job)}
    if held & ENDS.keys():
        return ""
    for kind, words in QUEUED.items():
        if kind in held:
            return words
    for pod in pods:
        waiting = container_state(pod).get("waiting") or {}
        unplaced: Json = next(
            (c for c in pod.get("status", {}).get("conditions") or () if c.get("reason") == "Unschedulable"), {}
        )
        for what in (waiting, unplaced):
            if what.get("reason"):
                return ": ".join(str(what[key]) for key in ("reason", "message") if what.get(key))
    return ""


def outcome_of_log(lines: Iterable[str], name: str, log: Log) -> Outcome:
    """The same for a run that no cluster knows of: its log is passed on, and its last word counts."""
    told = Told()
    for line in lines:
        log.say(line.rstrip("\n"))
        told.hear(line)
    code = UNKNOWN if told.exit_code is None else told.exit_code
    reason = (
        "the log ended before the run did" if told.exit_code is None else f"the log ended with: {told.last['event']}"
    )
    return Outcome(name, code, reason, [], told)
