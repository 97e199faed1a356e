"""A stage's heavy or native part in a process of its own: its memory goes when it ends, and a crash is only its own.

    python -m job.export.reference REQUEST_JSON RESULT_JSON

The child writes `{"result": …}`, or the `JobError` it ended with, which the job raises again as if it were its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from job.errors import TREE, CapacityError, Fault, GateError, JobError, TransientError, classify

PACKAGE_ROOT = Path(__file__).parents[1]
DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}


class Child:
    """A child process at work on one request. As a context manager it is ended whatever happens."""

    def __init__(
        self, module: str, request: Mapping[str, Any], folder: Path, what: str, environment: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{module.rsplit('.', 1)[-1]}-{uuid.uuid4().hex[:8]}"
        asked, self._answer = folder / f"{stem}.request.json", folder / f"{stem}.result.json"
        asked.write_text(json.dumps(request), "utf-8")
        self.what = what
        self._process = subprocess.Popen(  # noqa: S603 - our own module, and no shell
            [sys.executable, "-P", "-m", module, str(asked), str(self._answer)],
            stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True,
            env={**(os.environ if environment is None else environment), "PYTHONPATH": _search_path()},
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """Ends the process at once; what it has written so far is scratch."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> dict[str, Any]:
        """The child's result. Raises the `JobError` it ended with, or what its death means."""
        code = self._process.wait()
        if not self._answer.exists():
            raise self._death(code)
        answer = json.loads(self._answer.read_bytes())
        if "error" in answer:
            raise _revived(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _death(self, code: int) -> JobError:
        if code == -signal.SIGKILL:
            return CapacityError(
                Fault(f"{self.what}: its process was killed, as happens when memory runs out", hint="Give the job more memory")
            )
        if -code in CRASHES:
            return GateError(
                Fault(f"{self.what}: native code crashed", found=signal.Signals(-code).name, hint="Its last words are on stderr")
            )
        if code < 0:
            return TransientError(Fault(f"{self.what}: its process was ended by {signal.Signals(-code).name}"))
        return JobError(Fault(f"{self.what}: its process ended with code {code}; its error is on stderr"))


def run_child(
    module: str, request: Mapping[str, Any], folder: Path, what: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One request to one child, to its end."""
    with Child(module, request, folder, what, environment) as child:
        return child.wait()


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The child's `main`: answers the one request it was started with."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    asked, answered = map(Path, sys.argv[1:3])
    try:
        answer = {"result": handle(json.loads(asked.read_bytes()))}
        code = 0
    except Exception as error:
        failure = classify(error)
        code = failure.exit_code
        if code == 1:
            import traceback

            traceback.print_exc()
        answer = {"error": {"class": type(failure).__name__, "faults": [asdict(fault) for fault in failure.faults]}}
    written = answered.with_suffix(".part")
    written.write_text(json.dumps(answer), "utf-8")
    written.replace(answered)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # native libraries may hang in their own farewells


def _revived(error: dict[str, Any]) -> JobError:
    kind = next((kind for kind in TREE if kind.__name__ == error["class"]), JobError)
    return kind(*(Fault(**fault) for fault in error["faults"]))


def _search_path() -> str:
    given = os.environ.get("PYTHONPATH")
    return f"{PACKAGE_ROOT}{os.pathsep}{given}" if given else str(PACKAGE_ROOT)
