"""A process that has imported what others need and forks one for each request: it begins in a tenth of a second, not
in ten.

    python -m job.host.fork_server SOCKET MODULE…

The server never touches a GPU, for what has cannot be forked: where an import did all the same, it refuses to serve
and says so. What it forks becomes a child of the process that asked, dies with it, and is waited for as any other.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from job.host.forked import Forked
from job.host.imports import collector_paused, gpu_left_alone
from job.host.streams import streams_of_children

PACKAGE_ROOT = Path(__file__).parents[2]
DIE_WITH_PARENT, ADOPT_ORPHANS = 1, 36  # prctl's PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER
LIBCUDA, NOT_INITIALISED = "libcuda.so.1", 3  # the answer of a driver that nobody has called cuInit of, from cuda.h
CAPABILITY = "TUNEJOB_GPU_CAPABILITY"  # of the GPU that forked processes will use, such as 9.0
START_SECONDS = 120.0  # for the imports, on a busy machine


class ForkServer:
    """One server of this process. Once asked to, it imports in the background; the first `fork` waits for it."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        """`environment`: the server's own, which its imports see. Begins before a second thread does, if it can."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._server: Forked | subprocess.Popen[bytes]
        self._refusal: str | None = None
        self._importing = self._ready = False
        _prctl(ADOPT_ORPHANS, 1)
        with theirs:
            if may_fork_here(modules):
                self._fork_server(theirs)
            else:
                self._start_server(theirs, modules, environment)

    def start_imports(self) -> None:
        """From here on the imports cost their processor time, and are done sooner than somebody waits for them."""
        if not self._importing:
            self._importing = True
            with contextlib.suppress(OSError):  # a server that has ended is reported by `fork`
                self._control.send(b"!")

    def fork(
        self, call: str, arguments: Sequence[Any], cwd: Path, environment: Mapping[str, str], streams: Sequence[int]
    ) -> Forked:
        """A process that calls `call`, module:function, with `arguments` and exits with what it returns; `streams`
        become its 0, 1 and 2.

        Raises `OSError` where no process can be made, and its subclass `ConnectionError` where the server cannot serve.
        """
        with self._lock:
            self.start_imports()
            self._wait_until_ready()
            asked = {
                "call": call,
                "arguments": list(arguments),
                "cwd": str(cwd),
                "environment": dict(environment),
                "owner": os.getpid(),
            }
            request = os.memfd_create("request")
            try:
                with open(request, "wb", closefd=False) as file:
                    file.write(json.dumps(asked).encode())
                socket.send_fds(self._control, [b"?"], [request, *streams])
            finally:
                os.close(request)
            answer = json.loads(self._control.recv(1 << 12) or b'{"refused": "the fork server has ended"}')
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        if "refused" in answer:
            raise ConnectionError(answer["refused"])
        return Forked(answer["pid"])

    def close(self) -> None:
        """Ends the server at once; what it has forked goes on."""
        self._control.close()
        self._server.kill()
        self._server.wait()

    def _wait_until_ready(self) -> None:
        if not self._ready:
            self._control.settimeout(START_SECONDS)
            try:
                said = json.loads(self._control.recv(1 << 12) or b'{"refused": "the fork server did not start"}')
            except TimeoutError:
                said = {"refused": f"the fork server was not there after {START_SECONDS:.0f} s"}
            self._control.settimeout(None)
            self._ready, self._refusal = True, said["refused"]
        if self._refusal:
            raise ConnectionError(self._refusal)

    def _start_server(self, theirs: socket.socket, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        out, errors = streams_of_children()
        self._server = subprocess.Popen(  # noqa: S603 - our own module, and no shell
            [sys.executable, "-P", "-m", "job.host.fork_server", str(theirs.fileno()), *modules],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            cwd="/",
            env={**environment, "PYTHONPATH": search_path(environment)},
            start_new_session=True,
        )

    def _fork_server(self, theirs: socket.socket) -> None:
        owner = os.getpid()
        if pid := os.fork():
            self._server = Forked(pid)
            return
        self._control.close()
        os.setsid()
        end_after(lambda: serve(theirs, owner) if theirs.recv(1) else None)


def end_after(work: Callable[[], None]) -> NoReturn:
    """Ends this forked process after `work` as the interpreter would, for what called us is not its own."""
    code: Any = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    finally:
        with contextlib.suppress(OSError, ValueError):
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def search_path(environment: Mapping[str, str]) -> str:
    """PYTHONPATH for a process that must find this package, wherever it is started."""
    return os.pathsep.join(filter(None, (str(PACKAGE_ROOT), environment.get("PYTHONPATH"))))


def may_fork_here(modules: Sequence[str]) -> bool:
    """Whether this process itself, with no second thread yet, has imported everything."""
    return (
        all(name in sys.modules for name in modules) and len(os.listdir("/proc/self/task")) == 1 and refusal() is None
    )


def refusal() -> str | None:
    """Why this process must not fork: an import has opened the GPU. None where nothing has."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "torch has opened the GPU"
    try:
        cuda = ctypes.CDLL(LIBCUDA, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None
    return (
        None
        if cuda.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == NOT_INITIALISED
        else "an import has opened the GPU's driver"
    )


def serve(control: socket.socket, owner: int) -> None:
    """Forks what is asked for until `owner` closes the socket or dies. In a forked process, returns by `SystemExit`."""
    die_with(owner)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everybody; the owner decides
    gc.freeze()  # what is there stays shared: the collector would write to all of it
    why = refusal()
    control.send(json.dumps({"refused": why}).encode())
    while why is None:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 4)
        except ConnectionError:  # the owner ended without reading our last answer
            return
        if not message:
            return
        control.send(json.dumps(_orphan(control, descriptors)).encode())
        for descriptor in descriptors:
            os.close(descriptor)


def _orphan(control: socket.socket, descriptors: Sequence[int]) -> dict[str, int]:
    """Forks a process that the owner has adopted when this returns, as its parent has ended. Its pid, or an errno."""
    reading, writing = os.pipe()
    try:
        if middle := os.fork():
            os.close(writing)
            with open(reading, "rb") as pipe:
                answer: dict[str, int] = json.load(pipe)
            os.waitpid(middle, 0)
            return answer
        try:
            child = os.fork()
        except OSError as error:
            os.write(writing, json.dumps({"errno": error.errno}).encode())
            os._exit(1)
        if child:
            os.write(writing, json.dumps({"pid": child}).encode())
            os._exit(0)
    except OSError as error:
        os.close(writing)
        os.close(reading)
        return {"errno": error.errno or 0}
    os.close(reading)
    os.close(writing)
    control.close()
    return become(*descriptors)


def become(request: int, *streams: int) -> NoReturn:
    """The forked process from here on."""
    middle = os.getppid()
    with open(request, "rb") as file:
        file.seek(0)
        asked = json.load(file)
    while os.getppid() == middle and middle != asked["owner"]:
        time.sleep(0.0005)
    die_with(asked["owner"])
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - it lasts as long as the process
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    module, function = asked["call"].split(":")
    sys.argv = [module, *map(str, asked["arguments"])]
    sys.exit(getattr(importlib.import_module(module), function)(*asked["arguments"]))


def die_with(owner: int) -> None:
    """The kernel kills this process when `owner`, its parent, ends; at once where it has ended already."""
    _prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main(descriptor: str, *modules: str) -> None:
    owner = os.getppid()
    die_with(owner)
    control = socket.socket(fileno=int(descriptor))
    control.set_inheritable(False)
    if not control.recv(1):
        return
    with gpu_left_alone(os.environ.get(CAPABILITY, "")), collector_paused():
        for module in modules:
            with contextlib.suppress(ImportError):  # whoever needs it will say so
                importlib.import_module(module)
    # Python 3.12 warns of threads. There are those of numpy's OpenBLAS alone, which ends them before a fork.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    serve(control, owner)
    os._exit(0)  # with nothing to clean up


if __name__ == "__main__":
    main(*sys.argv[1:])
