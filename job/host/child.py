"""A stage's heavy or native part in a process of its own: its memory goes when it ends, and a crash is only its own.

    python -m job.export.compare REQUEST_JSON RESULT_JSON

A request is a record (`job.host.records`) of the kind that the annotation of the module's `handle(request)` names, or
plain JSON. The child writes `{"result": …}`, or the `JobError` it ended with, which the job raises again as if it were
its own.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

from job.errors import TREE, CapacityError, Fault, GateError, JobError, TransientError, classify
from job.host.credentials import names_secret
from job.host.fork_server import CAPABILITY, ForkServer, die_with, search_path
from job.host.forked import Forked
from job.host.memory import MemorySampler
from job.host.records import build, encode
from job.host.redact import Redactor
from job.host.signals import say_only
from job.host.streams import LastingStream, last_printed, streams_of_children

PARENT = "TUNEJOB_PARENT"  # the process that a child must not outlive
SAMPLE_SECONDS = 0.02
CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
# Blocks of this size and more go back to the system as soon as they are free: the C library would otherwise raise its
# own limit to 32 MiB, keep what tensors have freed and take a third more, or not, as it happens.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
# What those of a run need; named here, for whoever starts any
CHILDREN_IMPORT = (
    "torch",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "peft",
)
SERVER_SETTINGS = {
    "HF_HUB_OFFLINE": "1",  # read at import: what children load is here already
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asks the driver for its GPUs without opening one
}


@dataclass(frozen=True)
class ChildMemory:
    """What one child process took at its peak, and what was planned, None where nothing was.

    `peak_anonymous_bytes` is what a control group cannot take back; the rest of `peak_rss_bytes` is mapped files,
    which can be dropped.
    """

    what: str
    planned_bytes: int | None
    peak_anonymous_bytes: int
    peak_rss_bytes: int


Handler = Callable[[Any], Any]  # of a request, whose annotation says its form
Answer = TypeVar("Answer")
_SERVERS: list[ForkServer] = []  # none, or the one
RUNNING: list[MemorySampler] = []  # of children at work
ENDED: list[ChildMemory] = []  # children of this process that have ended, as with getrusage's RUSAGE_CHILDREN


class Child:
    """A child process at work on one request. As a context manager it is ended whatever happens.

    What it takes of memory at its peak goes to `ENDED`, beside what was planned.
    """

    def __init__(
        self,
        module: str,
        request: Any,
        folder: Path,
        what: str,
        environment: Mapping[str, str] | None = None,
        planned_bytes: int | None = None,
        further: Mapping[str, str] | None = None,
    ) -> None:
        """`request`: a record, or plain JSON. `further`: variables that it gets in any case."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{module.rsplit('.', 1)[-1]}-{uuid.uuid4().hex[:8]}"
        asked, self._answer = folder / f"{stem}.request.json", folder / f"{stem}.result.json"
        asked.write_bytes(encode(request))
        self.what = what
        self._process = _process(module, asked, self._answer, folder, environment, further or {})
        self._planned_bytes = planned_bytes
        self._watch = MemorySampler(self.pid, SAMPLE_SECONDS)
        self._watch.start()
        RUNNING.append(self._watch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> bool:
        return self.exit_code is not None

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Asks the process to end as it ends on a stop signal."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process at once; what it has written so far is scratch."""
        self._process.kill()
        self._end()

    def _end(self) -> int:
        """Waits for the process; its exit code."""
        code = self._process.wait()
        watch = self._watch
        if watch.is_alive():
            watch.finish()
            RUNNING.remove(watch)
            peaks = (watch.peak_anonymous_bytes, watch.highest_rss_bytes)
            ENDED.append(ChildMemory(self.what, self._planned_bytes, *peaks))
        return code

    def wait(self, what: str | None = None) -> dict[str, Any]:
        """The child's result. Raises the `JobError` it ended with, or what its death means, of `what` it is by now."""
        code = self._end()
        answer = json.loads(self._answer.read_bytes()) if self._answer.exists() else None
        if answer is None or "error" in answer:
            taken = self._watch.peak_anonymous_bytes
            error = (
                death(what or self.what, code, self._planned_bytes, taken)
                if answer is None
                else _revived(answer["error"])
            )
            error.printed = last_printed() if answer is None or error.exit_code == JobError.exit_code else ""
            raise error
        result: dict[str, Any] = answer["result"]
        return result


def taken_bytes() -> int:
    """Anonymous memory that children at work hold now."""
    return sum(watch.anonymous_bytes for watch in RUNNING)


def run_child(
    module: str, request: Any, folder: Path, what: str, environment: Mapping[str, str] | None = None,
    planned_bytes: int | None = None, answer: type[Answer] = dict,  # type: ignore[assignment]
) -> Answer:  # fmt: skip
    """One request to one child, to its end; its result as a record of the kind `answer`."""
    with Child(module, request, folder, what, environment, planned_bytes) as child:
        found: Answer = build(answer, child.wait())
    return found


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What a process that reaches no server needs of an environment."""
    return {name: value for name, value in environment.items() if not names_secret(name)}


def preload(modules: Sequence[str], capability: str | None = None) -> None:
    """From here on children are forked from a process that imports `modules` once `start_imports` says so, and ends
    with this one.

    `capability`: the GPU's, if children will use one. To be called before this process has a second thread.
    """
    settings = SERVER_SETTINGS | {CAPABILITY: capability or ""}
    _SERVERS[:] = [ForkServer(modules, {**ALLOCATOR, **without_secrets(os.environ), **settings})]
    atexit.register(_SERVERS[0].close)


def start_imports() -> None:
    for server in _SERVERS:
        server.start_imports()


def _process(
    module: str, asked: Path, answered: Path, folder: Path, environment: Mapping[str, str] | None,
    further: Mapping[str, str],
) -> Forked | subprocess.Popen[bytes]:  # fmt: skip
    """The child's process: forked, or, with an `environment` of its own or where there is no fork server, started.

    Without an environment of its own it reaches no server, and gets no credentials.
    """
    plain = without_secrets(os.environ) | dict(further)
    own = plain if environment is None else {**environment, **further}
    if _SERVERS and environment is None:
        with open(os.devnull) as nothing:
            streams = [nothing.fileno(), *streams_of_children()]
            try:
                return _SERVERS[0].fork(
                    "job.host.child:serve_forked", [module, str(asked), str(answered)], folder, plain, streams
                )
            except ConnectionError as refusal:
                LastingStream(sys.stderr).write(f"children are started, not forked, from here on: {refusal}\n")
                _SERVERS.clear()
    out, errors = streams_of_children()
    return subprocess.Popen(  # noqa: S603 - our own module, and no shell
        [sys.executable, "-P", "-m", module, str(asked), str(answered)],
        stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd=folder, start_new_session=True,
        env={**ALLOCATOR, **own, "PYTHONPATH": search_path(os.environ), PARENT: str(os.getpid())},
    )  # fmt: skip


def serve(handle: Handler) -> None:
    """The `main` of a child that was started: answers the one request it was started with."""
    die_with(int(os.environ.get(PARENT, os.getppid())))
    answer_request(handle, *map(Path, sys.argv[1:3]))


def serve_forked(module: str, asked: str, answered: str) -> None:
    """The same in a child that was forked."""
    answer_request(importlib.import_module(module).handle, Path(asked), Path(answered))


def answer_request(handle: Handler, asked: Path, answered: Path) -> NoReturn:
    """Writes the result of `handle`, or the `JobError` it ended with, and ends the process."""
    redact = Redactor()
    sys.stdout, sys.stderr = LastingStream(sys.stdout, redact), LastingStream(sys.stderr, redact)
    say_only(lambda failure: _write(_told(failure), answered, redact))
    try:
        request = build(typing.get_type_hints(handle).get("request"), json.loads(asked.read_bytes()))
        answer = b'{"result": ' + encode(handle(request)) + b"}"
        code = 0
    except Exception as error:
        failure = classify(error)
        answer, code = _told(failure), failure.exit_code
        if code == 1:
            traceback.print_exc()
    try:
        _write(answer, answered, redact)
    except OSError as error:
        sys.stderr.write(f"no answer could be written: {error}\n")
        code = classify(error).exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # native libraries may hang in their own clean-up


def _write(answer: bytes, answered: Path, redact: Redactor) -> None:
    written = answered.with_suffix(".part")
    written.write_text(redact(answer.decode()), "utf-8")
    written.replace(answered)


def _told(failure: JobError) -> bytes:
    return encode({"error": {"class": type(failure).__name__, "faults": [asdict(fault) for fault in failure.faults]}})


def _revived(error: dict[str, Any]) -> JobError:
    kind = next((kind for kind in TREE if kind.__name__ == error["class"]), JobError)
    return kind(*(Fault(**fault) for fault in error["faults"]))


def death(what: str, code: int, planned_bytes: int | None, taken_bytes: int) -> JobError:
    """What it means that a child has ended without an answer. `code`: negative for a signal. `taken_bytes`: of memory,
    at its peak.
    """
    if code == -signal.SIGKILL:
        planned = "" if planned_bytes is None else f"{planned_bytes} bytes"
        return CapacityError(
            f"{what}: its process was killed, as happens when memory runs out",
            where="",
            found=f"{taken_bytes} bytes taken",
            expected=planned,
            hint="Give the job more memory",
        )
    if -code in CRASHES:
        name, hint = signal.Signals(-code).name, "Its last output is beside this message"
        return GateError(f"{what}: native code crashed", found=name, hint=hint)
    if code < 0:
        return TransientError(f"{what}: its process was ended by {signal.Signals(-code).name}")
    if code == CapacityError.exit_code:
        return CapacityError(f"{what}: the disk is full: its process could not even write down its result")
    kind = next((kind for kind in TREE if kind.exit_code == code), JobError)  # a watchdog has no time for an answer
    return kind(f"{what}: its process ended with code {code}; its last output says why")
