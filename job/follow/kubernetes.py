"""`tunejob wait NAME`: waits for a Kubernetes Job with kubectl and passes its log on, as CI does after submitting."""

from __future__ import annotations

import re
import time
from queue import Empty, Queue

from job.errors import InputError, Interrupted, JobError, SpecError
from job.follow.kubectl import LINES_AHEAD, Json, Kubectl, Line, LogReader
from job.follow.outcome import UNKNOWN, Attempt, Heard, Outcome
from job.follow.pods import (
    ENDS,
    attempt,
    conditions,
    container_name,
    container_state,
    is_first,
    node_is_lost,
    waiting_for,
)
from job.host.log import Log
from job.host.signals import deferred

JOB_LABEL = "batch.kubernetes.io/job-name"
SET_LABEL = "jobset.sigs.k8s.io/jobset-name"  # on the Jobs of a set; Kubeflow Trainer gives a set its TrainJob's name
# What can be waited for, as kubectl names it, and for a set of Jobs the kind to ask for while it has none.
KINDS = {"job": "", "jobset": "jobsets.jobset.x-k8s.io", "trainjob": "trainjobs.trainer.kubeflow.org"}
DEADLINE = "DeadlineExceeded"
EXIT_CODE = re.compile(r"exit code (\d{1,3})\b")  # in the words of a pod failure policy
LAST_WORDS_SECONDS = 30.0  # for the rest of the logs once the Job has ended
LAST_READS = 2


class JobWatch:
    """One Job from now to its end. `target`: a name, or kind/name as `kubectl apply -o name` prints it."""

    def __init__(self, target: str, kubectl: Kubectl, log: Log, pause_seconds: float) -> None:
        kind, _, self.name = target.rpartition("/")
        self._kind = kind.partition(".")[0].lower().removesuffix("s") or "job"
        if self._kind not in KINDS or not self.name:
            expected = "the name of a Job, or job/NAME, jobset/NAME, trainjob/NAME"
            raise SpecError("this cannot be waited for", where="JOB", found=ascii(target), expected=expected)
        self._kubectl = kubectl
        self._log = log
        self._pause_seconds = pause_seconds
        self._container = ""
        self._pods: dict[str, Json] = {}  # the oldest first
        self._logs: dict[str, Heard] = {}
        self._heard: dict[str, str] = {}  # time of each pod's last line
        self._readers: dict[str, LogReader] = {}
        self._lines: Queue[Line] = Queue(LINES_AHEAD)
        self._said: set[str] = set()
        self._state = ""
        self._seen = self._several = False

    def wait(self) -> Outcome:
        """The end of the Job, however long it takes: its own deadline bounds it. Raises `InputError` and
        `TransientError` for a cluster that never showed it.
        """
        try:
            while (outcome := self._look()) is None:
                self._listen(self._pause_seconds)
            return outcome
        except JobError as error:
            if not self._seen and not isinstance(error, Interrupted):
                raise
            return self._outcome(error.exit_code, f"the Job may go on; {error.faults[0].message}", final=False)
        finally:
            for reader in self._readers.values():
                reader.close()

    def _look(self) -> Outcome | None:
        """Looks once and follows what runs. The pods are read after the Job, so those of an ended Job are final."""
        job = self._find()
        if job is None:
            return self._gone()
        self._seen = True
        self._container = container_name(job)
        selector = f"{JOB_LABEL}={job['metadata']['name']}"
        pods = (self._kubectl.get("pods", "--selector", selector) or {}).get("items") or []
        pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        self._report(waiting_for(job, pods, self._warnings(job, pods)))
        self._several = self._several or not all(map(is_first, pods))
        pods = [pod for pod in pods if is_first(pod)]  # it runs the job; the others lend it their GPUs
        self._pods |= {pod["metadata"]["name"]: pod for pod in pods}
        self._follow(pods)
        ended = next((c for c in conditions(job) if c["type"] in ENDS), None)
        if ended is None:
            return None
        self._read_to_the_end(pods)
        return self._ended(ended)

    def _find(self) -> Json | None:
        """The Job; for a set that has none yet the set itself, which has conditions of the same names."""
        if self._kind == "job":
            return self._kubectl.get("job", self.name)
        jobs = (self._kubectl.get("jobs", "--selector", f"{SET_LABEL}={self.name}") or {}).get("items")
        if jobs:
            return dict(max(jobs, key=lambda job: str(job["metadata"].get("creationTimestamp"))))
        return self._kubectl.get(KINDS[self._kind], self.name)

    def _warnings(self, job: Json, pods: list[Json]) -> list[Json]:
        """Events that say why no pod is made; asked for only while there is none at work."""
        if any(pod["status"].get("phase") in ("Pending", "Running") for pod in pods):
            return []
        kind = job.get("kind", "Job")  # a set's, while it has none
        about = f"involvedObject.kind={kind},involvedObject.name={job['metadata']['name']},type=Warning"
        return list((self._kubectl.glance("events", "--field-selector", about) or {}).get("items") or ())

    # ------------------------------------------------------------------------------------------------ logs

    def _follow(self, pods: list[Json]) -> None:
        """Has a reader at every log that is not read to its end; readers of several pods work side by side."""
        for pod in pods:
            name, state = pod["metadata"]["name"], container_state(pod, self._container)
            reader = self._readers.get(name)
            if state.keys().isdisjoint({"running", "terminated"}):
                continue
            if reader and (reader.is_alive() or reader.has_read_all):
                continue
            if reader:
                self._note(reader.hindrance)
            since = self._heard.get(name, "")
            with deferred():  # a reader that nobody knows of would outlive us
                final = "terminated" in state
                self._readers[name] = self._kubectl.follow(name, self._container, since, self._lines, final)

    def _note(self, hindrance: str) -> None:
        """What prevents reading a log is reported once, and is not a failure."""
        if hindrance and hindrance not in self._said:
            self._log("job", note="the log cannot be read", reason=hindrance)
        self._said.add(hindrance)

    def _listen(self, seconds: float) -> None:
        """Passes on what the logs say within this time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                pod, said_at, line = self._lines.get(timeout=left)
            except Empty:
                return
            if said_at > self._heard.get(pod, ""):
                self._log.say(line)
                self._logs.setdefault(pod, Heard()).hear(line)
                self._heard[pod] = said_at

    def _read_to_the_end(self, pods: list[Json]) -> None:
        reachable = [pod for pod in pods if not node_is_lost(pod)]
        for _ in range(LAST_READS):
            self._follow(reachable)
            readers = [self._readers[name] for pod in reachable if (name := pod["metadata"]["name"]) in self._readers]
            self._drain(readers, LAST_WORDS_SECONDS / LAST_READS)
        for reader in readers:
            self._note(reader.hindrance)

    def _drain(self, readers: list[LogReader], seconds: float) -> None:
        """Passes on what these readers find until they end, or the time does."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(reader.is_alive() for reader in readers):
            self._listen(0.05)
        while not self._lines.empty():
            self._listen(0.05)

    def _report(self, state: str) -> None:
        if state and state != self._state:
            self._log("job", name=self.name, waiting_for=state)
        self._state = state

    # ------------------------------------------------------------------------------------------------- end

    def _gone(self) -> Outcome:
        """Not there: never was, or deleted in between. A run that said it is done is done."""
        if not self._seen:
            raise InputError(f"there is no such {self._kind}", found=self.name, hint="Is the namespace right?")
        self._drain(list(self._readers.values()), LAST_WORDS_SECONDS)
        attempts = self._attempts()
        ended = bool(attempts) and attempts[-1].exit_code == 0
        code = 0 if ended else Interrupted.exit_code
        return self._outcome(
            code, "the Job was deleted" + (" after it had finished" if ended else " before it had finished")
        )

    def _ended(self, condition: Json) -> Outcome:
        code = ENDS[condition["type"]]
        reason = ": ".join(condition[key] for key in ("reason", "message") if condition.get(key))
        if code and condition.get("reason") == DEADLINE:
            code = Interrupted.exit_code
        elif code:
            known = [attempt.exit_code for attempt in self._attempts() if attempt.exit_code]
            named = EXIT_CODE.search(reason)  # where the pod is gone already
            if self._several and named:  # another machine's end may be the cause of the first one's
                known = [int(named[1])]
            code = known[-1] if known else (named and int(named[1])) or UNKNOWN
        return self._outcome(code, reason or condition["type"])

    def _outcome(self, code: int, reason: str, final: bool = True) -> Outcome:
        heard = next((heard for heard in reversed(self._logs.values()) if heard.last), Heard())
        return Outcome(self.name, code, reason, self._attempts(), heard, final)

    def _attempts(self) -> list[Attempt]:
        return [attempt(pod, self._container, self._logs.get(name, Heard())) for name, pod in self._pods.items()]
