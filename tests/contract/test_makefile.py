"""What make hands on to the commands of its recipes."""

from __future__ import annotations

import os
import subprocess

from tests.forking import ROOT


def test_long_cases_are_not_left_out_for_want_of_their_tools() -> None:
    """They are skipped without these, wherever nobody has run make test before."""
    asked = ["make", "--dry-run", "--question", "--print-data-base", "long"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    (line,) = (line for line in said.splitlines() if line.startswith("long:"))
    assert set(line.split()) >= {f".venv-{name}/.packages" for name in ("benchmarks", "trackers", "vllm")}


def test_compiled_python_is_kept_where_a_machine_is_set_not_to() -> None:
    """Without it each process compiles all that it imports, which is half of the time of its start."""
    asked = ["make", "-s", "--eval", "asked: ; @echo [$$PYTHONDONTWRITEBYTECODE]", "asked"]
    said = subprocess.run(
        asked, cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=True
    )
    assert said.stdout == "[]\n"
