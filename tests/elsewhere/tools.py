"""The linters and readers of `.venv-elsewhere` (locks/tools-elsewhere.txt, `make elsewhere-test`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-elsewhere" / "bin"
needs_tools = pytest.mark.skipif(
    not (BIN / "zizmor").exists(), reason="make .venv-elsewhere/.packages brings the linters"
)


def tool(name: str, *arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of `.venv-elsewhere`; whatever it says is in `stdout`."""
    command = [str(BIN / name), *map(str, arguments)]
    variables = {**os.environ, "NO_COLOR": "1", **environment}
    return subprocess.run(
        command,
        cwd=cwd,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
