"""Importing this collects the tests, once for all workers that are forked afterwards: each finds them imported.

Which ones, and the environment that they see meanwhile, is in the variable `VARIABLE`; without it nothing happens.
"""

from __future__ import annotations

import contextlib
import io
import json
import os

import pytest

VARIABLE = "TESTS_TO_COLLECT"


def asked(arguments: list[str]) -> dict[str, str]:
    return {VARIABLE: json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()})}


def collect(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """What goes wrong goes wrong in the workers as well, and is said there."""
    own, place = dict(os.environ), os.getcwd()
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            pytest.main(["--collect-only", "-p", "no:cacheprovider", *arguments])
    finally:
        os.environ.clear()
        os.environ.update(own)
        os.chdir(place)


if VARIABLE in os.environ:
    collect(**json.loads(os.environ[VARIABLE]))
