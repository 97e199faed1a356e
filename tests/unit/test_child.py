"""A child's result, its error and its death, each as the job must see it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from job.errors import CapacityError, Fault, GateError, InputError, Interrupted, JobError, TransientError
from job.host import child, signals
from job.host.child import Child, run_child
from tests.flow.running import ROOT

MODULE = """
import ctypes, os, signal, sys, time
from job.host.child import serve
from job.errors import Fault, InputError

def handle(request):
    match request["do"]:
        case "answer":
            print("noise of a vendor")
            return {"doubled": 2 * request["number"], "cwd": os.getcwd(), "token": os.environ.get("HF_TOKEN")}
        case "refuse":
            raise InputError(Fault("no", where="/model/source", found="x", expected="y", hint="z"), Fault("neither"))
        case "fail":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        case "surprise":
            raise KeyError("what")
        case "die":
            os.write(2, b"last native words\\n")
            os.kill(os.getpid(), request["signal"])
        case "leave":
            os._exit(3)
        case "wait":
            open(request["started"], "w").close()
            time.sleep(600)

if __name__ == "__main__":
    serve(handle)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "given_child.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "given_child"


def test_a_result_comes_back(module: str, tmp_path: Path) -> None:
    found = run_child(
        module,
        {"do": "answer", "number": 21},
        tmp_path / "work",
        "a part",
        {"PATH": os.environ["PATH"], "HF_TOKEN": "t"},
    )
    assert found == {"doubled": 42, "cwd": str(tmp_path / "work"), "token": "t"}


def test_a_job_error_is_raised_again_with_all_it_says(module: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run_child(module, {"do": "refuse"}, tmp_path, "a part")
    first, second = caught.value.faults
    said = ("no", "/model/source", "x", "y", "z")
    assert (first.message, first.where, first.found, first.expected, first.hint) == said
    assert second.message == "neither"


@pytest.mark.parametrize(("what", "kind"), [("fail", CapacityError), ("surprise", JobError), ("leave", JobError)])
def test_other_errors_are_classified(module: str, tmp_path: Path, what: str, kind: type[JobError]) -> None:
    with pytest.raises(JobError) as caught:
        run_child(module, {"do": what}, tmp_path, "a part")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("number", "kind"), [(9, CapacityError), (11, GateError), (4, GateError), (6, GateError), (10, TransientError)]
)
def test_a_death_has_its_meaning_and_its_name(module: str, tmp_path: Path, number: int, kind: type[JobError]) -> None:
    with pytest.raises(JobError, match="a part") as caught:
        run_child(module, {"do": "die", "signal": number}, tmp_path, "a part")
    assert type(caught.value) is kind


DIVERTED = """
import os, signal, sys
from pathlib import Path
from job.errors import GateError
from job.host.child import run_child
from job.host.streams import divert
out = divert(Path(sys.argv[2]) / "vendor.log", lambda text: text.replace("s3cret", "[secret]"), native=False)
print("a library's line, s3cret")
print("a library's warning", file=sys.stderr)
try:
    run_child(sys.argv[1], {"do": "die", "signal": 11}, Path(sys.argv[2]), "a part")
except GateError as error:
    print(error.printed, file=out)
os.write(2, b"words of the process itself\\n")
os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_what_libraries_print_is_apart_and_the_last_words_of_a_crash_are_found(module: str, tmp_path: Path) -> None:
    """Those of a child beside its error, those of the process on its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", DIVERTED, module, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    printed = "a library's line, [secret]\na library's warning\nlast native words\n"
    assert (tmp_path / "vendor.log").read_text() == printed
    assert (done.returncode, done.stdout, done.stderr) == (-11, printed, "words of the process itself\n")


def test_a_child_does_not_outlive_its_context(module: str, tmp_path: Path) -> None:
    started = tmp_path / "started"
    with Child(module, {"do": "wait", "started": str(started)}, tmp_path, "a part") as child:
        while not started.exists():
            time.sleep(0.01)
        assert not child.ended()
    assert child.ended()
    assert not Path(f"/proc/{child.pid}").exists()


LEAVER = """
import os, sys
from pathlib import Path
from job.host.child import Child
Child(sys.argv[1], {"do": "wait", "started": sys.argv[2]}, Path(sys.argv[3]), "a part")
os._exit(0)
"""


def test_a_child_whose_parent_dies_at_once_does_not_begin(module: str, tmp_path: Path) -> None:
    """The parent is gone before the child could ask the kernel to die with it."""
    started = tmp_path / "started"
    subprocess.run([sys.executable, "-c", LEAVER, module, str(started), str(tmp_path / "work")], cwd=ROOT, check=True)
    deadline = time.monotonic() + 20
    while running := [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path / "work") in " ".join(p.info["cmdline"] or [])
    ]:
        assert time.monotonic() < deadline, running
        time.sleep(0.05)
    assert not started.exists()


WITHOUT_THREADS = """
import threading
from job.errors import Fault, TransientError
from job.host.signals import exit_now
def refuse(*_):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
exit_now(TransientError(Fault("lost")))
"""


def test_leaving_needs_no_thread() -> None:
    assert subprocess.run([sys.executable, "-c", WITHOUT_THREADS], cwd=ROOT, check=False).returncode == 20


def test_the_process_that_children_are_forked_from_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment can be read for as long as the run lasts; a child gets what the job has when it is forked."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("SOME_PASSWORD", "canary")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)  # or this very process would be forked
    child.preload(["colorsys"])
    (server,) = child._SERVERS
    try:
        while not (found := psutil.Process(server._server.pid).environ()):  # the program is being replaced
            time.sleep(0.01)
    finally:
        server.close()
        child._SERVERS.clear()
    assert found["HF_HUB_OFFLINE"] == "1"
    assert "canary" not in "".join(found.values())


def test_where_the_fork_server_is_gone_children_are_started(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    child.preload(["colorsys"])
    (server,) = child._SERVERS
    try:
        server._server.kill()
        server._server.wait()
        assert run_child(module, {"do": "answer", "number": 4}, tmp_path / "work", "a part")["doubled"] == 8
        assert child._SERVERS == []
        assert "children are started, not forked" in capfd.readouterr().err
    finally:
        server.close()
        child._SERVERS.clear()


def test_a_forked_child_answers_fails_and_dies_as_a_started_one_does(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child.preload(["colorsys"])
    (server,) = child._SERVERS
    try:
        assert run_child(module, {"do": "answer", "number": 4}, tmp_path, "a part")["doubled"] == 8
        with pytest.raises(InputError, match="no"):
            run_child(module, {"do": "refuse"}, tmp_path, "a part")
        with pytest.raises(CapacityError, match="a part"):
            run_child(module, {"do": "die", "signal": 9}, tmp_path, "a part")
        with pytest.raises(GateError, match="a part"):
            run_child(module, {"do": "die", "signal": 11}, tmp_path, "a part")
    finally:
        server.close()
        child._SERVERS.clear()


def test_what_a_library_makes_of_a_stop_is_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some wrap every exception that passes through them: an evicted pod ended as if its data were bad."""
    stopping = threading.Event()
    monkeypatch.setattr(signals, "_stopping", stopping)
    monkeypatch.setattr(signals, "_by", ["SIGTERM"])
    dressed = InputError(Fault("this config cannot be read"))
    assert signals.cause(dressed) is dressed
    stopping.set()
    assert (type(signals.cause(dressed)), signals.cause(dressed).faults[0].message) == (
        Interrupted,
        "stopped by SIGTERM",
    )
    assert type(signals.cause(ValueError("x"))) is Interrupted
