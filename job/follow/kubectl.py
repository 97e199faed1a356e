"""Reads from a cluster with kubectl: objects, and logs while they are written."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from queue import Queue
from typing import Any

from job.errors import Fault, InputError, TransientError

Json = dict[str, Any]
Line = tuple[str, str, str]  # the pod, when it was said, the text
REFUSALS = (
    "Forbidden",
    "Unauthorized",
    "You must be logged in",
    "no configuration has been provided",
    "doesn't have a resource type",
)
ANSWER_SECONDS = 60  # for one answer
FOLLOW_SECONDS = 600  # then the connection of a log is made anew: one that was lost may look like a silent one
CUTS = ("context deadline exceeded", "Client.Timeout")  # how kubectl says that it was
LINES_AHEAD = 10_000  # of logs that nobody has taken yet


class Kubectl:
    """One namespace of a cluster; None means the context's own."""

    def __init__(self, namespace: str | None, pause_seconds: float, patience_seconds: float) -> None:
        if shutil.which("kubectl") is None:
            raise InputError("kubectl is not installed", expected="kubectl on PATH, with access to the cluster")
        self._command = ["kubectl", *(["--namespace", namespace] if namespace else [])]
        self._pause_seconds = pause_seconds
        self._patience_seconds = patience_seconds
        self._answered = False

    def get(self, *arguments: str) -> Json | None:
        """The parsed answer of `kubectl get`; None if it is not there.

        What the cluster refuses before it has answered anything raises `InputError` at once. Later it is asked again,
        as when it is silent: an API server that starts refuses everybody for a while. After the patience `InputError`
        or `TransientError` is raised.
        """
        began = time.monotonic()
        while True:
            answer, said = self._ask(*arguments)
            if answer is not None or "NotFound" in said:
                self._answered = True
                return answer
            refused = any(word in said for word in REFUSALS)
            if refused and not self._answered:
                raise InputError(f"the cluster refuses: {said}", hint="Is the namespace right, and the token?")
            if time.monotonic() - began >= self._patience_seconds:
                what = "refused" if refused else "did not answer"
                fault = Fault(f"the cluster {what} for {self._patience_seconds:g} s: {said}")
                raise InputError(fault) if refused else TransientError(fault)
            time.sleep(self._pause_seconds)

    def glance(self, *arguments: str) -> Json | None:
        """The same for what one can do without: asked once, None where there is no answer."""
        return self._ask(*arguments)[0]

    def _ask(self, *arguments: str) -> tuple[Json | None, str]:
        """The answer, or what kubectl says instead of one."""
        command = [*self._command, "get", *arguments, "--output", "json", "--request-timeout", f"{ANSWER_SECONDS}s"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603
        if done.returncode:
            return None, last_line(done.stderr) or f"kubectl ended with {done.returncode}"
        try:
            return dict(json.loads(done.stdout)), ""
        except (ValueError, TypeError, RecursionError):
            return None, "the answer is not a JSON object"

    def follow(self, pod: str, container: str, since: str, lines: Queue[Line], final: bool) -> LogReader:
        """Puts each line that the container says after `since` into `lines`, until it ends or the connection does."""
        command = [*self._command, "logs", pod, "--container", container, "--follow", "--timestamps"]
        command += ["--request-timeout", f"{FOLLOW_SECONDS}s", *(["--since-time", since] if since else [])]
        return LogReader(command, pod, lines, final)


class LogReader(threading.Thread):
    """One `kubectl logs`. `final`: it began after the container had ended, so it reads all that there is."""

    def __init__(self, command: list[str], pod: str, lines: Queue[Line], final: bool) -> None:
        super().__init__(name=f"log of {pod}", daemon=True)
        self.final = final
        self.hindrance = ""
        self._pod = pod
        self._lines = lines
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace")  # noqa: S603
        self.start()

    def run(self) -> None:
        for line in self._process.stdout or ():
            said_at, _, text = line.rstrip("\n").partition(" ")
            self._lines.put((self._pod, said_at, text))
        said = last_line(self._process.stderr.read()) if self._process.stderr else ""
        if self._process.wait() and not any(cut in said for cut in CUTS):
            self.hindrance = said or "kubectl logs failed"

    @property
    def has_read_all(self) -> bool:
        return self.final and not self.is_alive() and self._process.returncode == 0

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def last_line(text: str) -> str:
    """kubectl's own notes (memcache.go …) come first, what it means last."""
    return (text.strip().splitlines() or [""])[-1].strip()
