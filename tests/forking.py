"""How the tests begin a process of the command: forked from one that has imported all, or started as users do.

Importing torch, transformers, trl and peft costs ten seconds a process, a fork a tenth of one.
`tests/flow/test_streams.py` holds that both ways give the same; what starting itself is about (signals, streams,
limits of memory, Unsloth) is started.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from job.host.child import CHILDREN_IMPORT
from job.host.fork_server import ForkServer
from job.host.forked import Forked
from job.training.environment import prepared_environment

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "job")
PERSONAL = ("AWS_", "HF_", "HUGGING_FACE_", "TUNEJOB_", "WANDB_")  # nothing of whoever runs the tests
IMPORTED = (
    *CHILDREN_IMPORT, "bitsandbytes", "datasets", "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer", "accelerate", "boto3",
    "huggingface_hub.hf_api", "job.run", "job.training.callbacks", "job.training.saver", "torch.utils.tensorboard",
)  # fmt: skip
# Variables that are read when they are needed; all others may have been read by an import.
READ_LATE = ("TUNEJOB_", "AWS_", "HF_ENDPOINT", "HF_TOKEN", "WANDB_", "MLFLOW_", "KUBEFLOW_", "TRITON_CACHE_DIR")


def environment(scratch: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: none of the user's settings, the CPU, a termination log in `scratch`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PERSONAL)}
    ours = {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "TUNEJOB_DEVICE": "cpu",
        "TUNEJOB_LEASE_SECONDS": "5",  # a run after one that was killed waits so long
        "TUNEJOB_TERMINATION_LOG": str(scratch / "termination-log"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": str(ROOT),
    }
    return kept | ours | dict(extra or {})


def may_be_forked(arguments: Sequence[str], extra: Mapping[str, str]) -> bool:
    """Whether a forked process shows the same: a run without Unsloth, which comes first of all, or early variables."""
    if arguments[:1] != ("run",) or not all(name.startswith(READ_LATE) for name in extra):
        return False
    try:
        return json.loads(Path(arguments[1]).read_bytes())["model"]["backend"] == "peft"
    except (OSError, ValueError, LookupError, TypeError):  # a spec that is refused in a moment
        return False


def start(
    command: Sequence[str], streams: tuple[int, int], cwd: Path, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    out, err = streams
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=variables, start_new_session=True
    )


def fork(
    call: str,
    arguments: Sequence[Any],
    streams: tuple[int, int],
    cwd: Path,
    variables: Mapping[str, str],
    extra: Mapping[str, str] | None = None,
    given: int | None = None,
) -> Forked:
    """As `start`, for the function `call`, module:function. What of `extra` an import may read, the server has, too.
    `given` is its standard input, nothing where it is None."""
    early = tuple(sorted((name, value) for name, value in (extra or {}).items() if not name.startswith(READ_LATE)))
    with open(os.devnull) as nothing:
        asked = [nothing.fileno() if given is None else given, *streams]
        return server(early).fork("tests.forking:run", [call, *arguments], cwd, variables, asked)


def run_forked(
    call: str, arguments: Sequence[Any], folder: Path, variables: Mapping[str, str], seconds: float, cwd: Path = ROOT
) -> tuple[int, str, str]:
    """Exit code, standard output and errors of `call`, within `seconds`; both streams go to files in `folder`."""
    out, err = folder / "forked.out", folder / "forked.err"
    with out.open("wb") as first, err.open("wb") as second:
        code = fork(call, arguments, (first.fileno(), second.fileno()), cwd, variables).wait(seconds)
    return code, out.read_text("utf-8"), err.read_text("utf-8", "replace")


@cache
def server(early: tuple[tuple[str, str], ...]) -> ForkServer:
    """The one of this process whose imports see these variables; it ends with it."""
    if not early and _ADOPTED:
        return _ADOPTED[0]
    return ForkServer(IMPORTED, environment_of_imports(Path(tempfile.mkdtemp(prefix="fork-server-")), dict(early)))


def environment_of_imports(scratch: Path, early: Mapping[str, str] | None = None) -> dict[str, str]:
    plain_https = {"HF_HUB_DISABLE_XET": "1"}  # as pushes go; read at import
    return prepared_environment(scratch, environment(scratch, plain_https | dict(early or {})))


_ADOPTED: list[ForkServer] = []  # none, or the one that was forked from this process before it had threads


def adopt_server() -> None:
    """This process has imported everything: a fork of it is what `server` gives from here on."""
    _ADOPTED[:] = [ForkServer(IMPORTED, os.environ)]


def run(call: str, *arguments: Any) -> Any:
    """In the forked process: forgets what was worked out from another environment, and calls."""
    tempfile.tempdir = None
    if more := os.environ.get(
        "TUNEJOB_TEST_PACKAGES"
    ):  # beside those of this Python, as a further installation would have them
        sys.path.append(more)
    module, function = call.split(":")
    return getattr(importlib.import_module(module), function)(*arguments)
