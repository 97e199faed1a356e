"""What each test file may cost: processor seconds, its child processes included. A wall clock times the machine.

    tests/budgets.json      file → processor seconds; written anew by `make budgets`

The files that cost most begin first, each as a whole on one worker, for its tests share what was run once. Files of
`SPREAD` share nothing and are dealt out test by test. A file beyond its budget fails the run: a test that was quick has
become slow, or a process is started that could be forked. Machines differ, so three times the figure is let through,
and less than `TRIFLE_SECONDS` always.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

FIGURES = Path(__file__).parent / "budgets.json"
SPREAD = {
    "tests/faults/test_s3_faults.py",
    "tests/faults/test_hub_faults.py",
    "tests/faults/test_full_disk.py",
    "tests/flow/test_running_twice.py",
    "tests/flow/test_signals.py",
    "tests/unit/test_gguf_convert.py",
    "tests/flow/test_refusals.py",
    "tests/faults/test_memory.py",
}
SLACK = 3.0
TRIFLE_SECONDS = 40.0
VARIABLE = "TUNEJOB_BUDGETS"  # keep: files beyond their budgets fail the run; write: the figures are written anew


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def processor_seconds() -> float:
    """Of this process and of all its children that have ended and been waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Dealt(LoadScopeScheduling):
    """Deals out files as a whole, and those of `SPREAD` test by test."""

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        return nodeid if file in SPREAD else file


class Budget:
    """The plugin: on a worker it measures, where the run is directed from it adds up and judges."""

    def __init__(self, config: pytest.Config) -> None:
        self._worker_output: dict[str, Any] | None = getattr(config, "workeroutput", None)
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._given: dict[str, float] = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
        self._over: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: -self._given.get(file_of(item.nodeid), 0.0))

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Dealt:
        config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
        return Dealt(config, log)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = processor_seconds()
        try:
            return (yield)
        finally:
            self._spent[file_of(item.nodeid)] += processor_seconds() - before

    def pytest_testnodedown(self, node: Any) -> None:
        for file, seconds in node.workeroutput.get("processor_seconds", {}).items():
            self._spent[file] += seconds

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._worker_output is not None:
            self._worker_output["processor_seconds"] = dict(self._spent)
            return
        if os.environ.get(VARIABLE) == "write":
            figures = {file: round(seconds, 1) for file, seconds in sorted(self._spent.items()) if seconds >= 1}
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        limits: dict[str, float] = {
            file: max(TRIFLE_SECONDS, SLACK * self._given.get(file, 0.0)) for file in self._spent
        }
        self._over = [
            f"{file}: {seconds:.0f} processor seconds, at most {limits[file]:.0f}"
            for file, seconds in sorted(self._spent.items())
            if seconds > limits[file]
        ]
        if self._over and session.exitstatus == 0 and os.environ.get(VARIABLE) == "keep":
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        costly = sorted(self._spent.items(), key=lambda item: -item[1])[:12]
        terminalreporter.section("processor seconds")
        terminalreporter.write_line(
            f"{sum(self._spent.values()):.0f} in all; " + ", ".join(f"{file} {s:.0f}" for file, s in costly)
        )
        for line in self._over:
            terminalreporter.write_line(f"beyond its budget (tests/budget.py): {line}", red=True)
