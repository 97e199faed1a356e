"""pytest's workers are forks of one process that has imported what most of them need, the test files included.

That takes 35 processor seconds, once, not once for each.

Each begins with a fork server of its own (`tests.forking`), which costs nothing then. pytest-xdist starts its workers
through execnet, which has no option for it: hence the class that is put in the place of execnet's. Without it the
workers would be started, no more.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import execnet.gateway_io
from execnet.gateway_base import Popen2IO

from job.host.fork_server import ForkServer
from tests.collected import asked
from tests.forking import IMPORTED, ROOT, adopt_server, environment_of_imports

COLLECTED = ("hypothesis", "pandas", "pyarrow.parquet", "tests.collected")


def fork_workers(scratch: Path, arguments: list[str]) -> ForkServer:
    """Forks execnet's processes from here on. To be called before a second thread. `arguments`: what is tested."""
    server = ForkServer([*IMPORTED, *COLLECTED], environment_of_imports(scratch) | asked(arguments))
    server.start_imports()

    class Forking(execnet.gateway_io.Popen2IOMaster):
        def __init__(self, args: list[str], execmodel: Any) -> None:
            (stdin, to_worker), (from_worker, stdout) = os.pipe(), os.pipe()
            self.popen = server.fork("tests.workers:work", [args[-1]], Path.cwd(), dict(os.environ), [stdin, stdout, 2])
            os.close(stdin)
            os.close(stdout)
            Popen2IO.__init__(self, os.fdopen(to_worker, "wb"), os.fdopen(from_worker, "rb"), execmodel=execmodel)

    execnet.gateway_io.Popen2IOMaster = Forking  # type: ignore[misc]
    return server


def make_models(server: ForkServer, log: Path) -> None:
    """The tests' own small models are made beside the first tests; one that needs them sooner waits for its model."""
    with open(os.devnull) as nothing, log.open("wb") as said:
        server.fork("tests.tiny:make_all", [], ROOT, dict(os.environ), [nothing.fileno(), said.fileno(), said.fileno()])


def work(bootstrap: str) -> None:
    """In the forked process: what execnet has its processes do, once the fork server is there; threads come later."""
    tempfile.tempdir = None  # was worked out from another environment
    adopt_server()
    sys.path[0] = str(ROOT)
    exec(bootstrap, {"__name__": "__main__"})
