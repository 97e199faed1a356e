"""A run whose processes are forked gives the same as one whose processes are started; what a fork server promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from job.host.fork_server import ForkServer
from tests.flow.running import ROOT
from tests.forking import environment

# ------------------------------------------------------------------------------------------ the server itself


@pytest.fixture
def server(tmp_path: Path) -> Any:
    here = ForkServer(["colorsys"], environment(tmp_path))
    yield here
    here.close()


def forked(server: ForkServer, call: str, *arguments: Any, cwd: Path = ROOT, out: int = 1, **variables: str) -> Any:
    with open(os.devnull) as nothing:
        return server.fork(call, list(arguments), cwd, variables, [nothing.fileno(), out, 2])


def test_it_has_the_directory_the_environment_and_the_streams_it_was_given(server: ForkServer, tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb") as said:
        process = forked(
            server,
            "builtins:exec",
            "import os; print(os.getcwd(), dict(os.environ))",
            cwd=tmp_path,
            out=said.fileno(),
            A="b",
        )
        assert process.wait(20) == 0
    assert (tmp_path / "said").read_text() == f"{tmp_path} {{'A': 'b'}}\n"


@pytest.mark.parametrize(
    ("code", "exit_code"), [("7", 7), ("None", 0), ("exit(3)", 3), ("1 / 0", 1), ("__import__('os').abort()", -6)]
)
def test_its_end_is_known(server: ForkServer, code: str, exit_code: int) -> None:
    assert forked(server, "builtins:eval", code).wait(20) == exit_code


@pytest.mark.parametrize(
    ("code", "exit_code", "out"), [("print('said')", 0, "said\n"), ("exit(3)", 3, ""), ("1 / 0", 1, "")]
)
def test_a_server_that_is_a_fork_itself_gives_the_same(code: str, exit_code: int, out: str, tmp_path: Path) -> None:
    """Of a process with one thread that has imported everything already."""
    asked = (
        "import os, sys\nfrom pathlib import Path\nfrom job.host.fork_server import ForkServer\n"
        "here = ForkServer(['sys'], {})\n"
        f"process = here.fork('builtins:exec', [{code!r}], Path('/'), {{}}, [0, 1, 2])\n"
        "assert here._server.pid and process.pid\nsys.exit(process.wait(20))"
    )
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (exit_code, out), done.stderr
    assert ("ZeroDivisionError" in done.stderr) == ("/" in code)


def test_garbage_is_looked_for_again_after_the_imports(server: ForkServer) -> None:
    assert forked(server, "builtins:eval", "0 if __import__('gc').isenabled() else 5").wait(20) == 0


def test_it_can_be_waited_for_and_killed(server: ForkServer) -> None:
    process = forked(server, "time:sleep", 600)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.kill()
    assert process.wait(20) == -signal.SIGKILL


def test_a_request_may_be_large(server: ForkServer) -> None:
    assert forked(server, "builtins:len", "x" * (1 << 22), LARGE="y" * (1 << 20)).wait(20) == (1 << 22) & 0xFF


def test_a_server_that_is_gone_is_an_error_and_no_wait(server: ForkServer) -> None:
    forked(server, "builtins:len", "").wait(20)
    psutil.Process(server._server.pid).kill()
    server._server.wait()
    with pytest.raises(OSError):
        forked(server, "builtins:len", "")


OWNER = """
import os, sys, time
from pathlib import Path
from job.host.fork_server import ForkServer
server = ForkServer(["colorsys"], dict(os.environ))
process = server.fork("time:sleep", [600], Path("/"), {"MARK": sys.argv[1]}, [0, 1, 2])
print(server._server.pid, process.pid, flush=True)
time.sleep(600)
"""


def test_server_and_forked_die_with_their_owner(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


REFUSING = """
import ctypes, job.host.fork_server as server
class Driver:
    def cuDeviceGetCount(self, count): return 0
server.ctypes = type("ctypes", (), {"CDLL": lambda *a, **k: Driver(), "byref": ctypes.byref, "c_int": ctypes.c_int})
print(server.refusal())
"""


def test_it_does_not_fork_once_a_gpu_is_open() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSING], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "an import has opened the GPU's driver\n"
