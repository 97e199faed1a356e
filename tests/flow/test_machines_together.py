"""Two machines train as one process does: this one plays both pods, each with an environment of its own, over gloo."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flow.running import Running, document, tiny, write_spec
from tests.flow.test_several import CHANGES, alone, members, same

__all__ = ["alone"]  # a fixture


def port() -> int:
    """One that nobody has, and whose neighbour nobody is likely to take."""
    with socket.socket() as asked:
        asked.bind(("localhost", 0))
        return int(asked.getsockname()[1])


def pods(folder: Path, meeting: int, **more: Any) -> list[Running]:
    """Both of them, as the manifests start them: the same spec, and which one this is."""
    spec = write_spec(folder / "spec.json", tiny(folder / "out", CHANGES | {"/resources": {"nodes": 2}, **more}))
    shared = {"TUNEJOB_MEETING": f"localhost:{meeting}", "TUNEJOB_STALL_MINUTES": "1"}
    return [Running(("run", spec), folder / f"pod-{number}", shared | {"TUNEJOB_MACHINE": f"{number}"}) for number in (0, 1)]


def test_two_pods_run_to_their_end(alone: Path, tmp_path: Path) -> None:
    """Stopped in the middle, they go on at the checkpoint, which the first brings to the other; every figure is that of one process."""
    first, second = pods(tmp_path, port())
    first.wait_until(lambda r: r.says('"step": 4,'))
    second.signal(signal.SIGTERM)  # as a node is drained: one of them is told
    stopped = [pod.finish(60) for pod in (first, second)]
    assert [result.exit_code for result in stopped] == [30, 30], stopped[1].stdout[-2000:]
    (stored,) = stopped[0].named("checkpoint")
    ended = [pod.finish(120) for pod in pods(tmp_path, port())]
    assert [result.exit_code for result in ended] == [0, 0], ended[0].stdout[-1500:] + ended[1].stdout[-1500:]
    assert [event["step"] for event in ended[0].named("resume")] == [stored["step"]]
    same(tmp_path / "out", alone)
    assert document(tmp_path / "out" / "stats.json")["training"]["processes"] == 2
    assert ended[1].events[-1]["text"] == "the first machine has stored what was trained"
    assert not ended[1].named("published")
    assert not ended[1].named("lease")


def test_a_pod_that_is_lost_ends_the_other(tmp_path: Path) -> None:
    """Which Kubernetes then starts again, and both go on."""
    first, second = pods(tmp_path, port())
    first.wait_until(lambda r: r.says('"step": 3,'))
    (process,) = members(second)
    second.kill()
    result = first.finish(60)
    assert result.exit_code == 20, result.stdout[-2000:]
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("variable", "value"), [("TUNEJOB_MACHINE", "2"), ("TUNEJOB_MEETING", "nowhere")])
def test_a_machine_that_does_not_know_which_it_is(variable: str, value: str, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", CHANGES | {"/resources": {"nodes": 2}}))
    known = {"TUNEJOB_MACHINE": "0", "TUNEJOB_MEETING": "localhost:29400"} | {variable: value}
    result = Running(("run", spec), tmp_path / "scratch", known).finish(60)
    assert (result.exit_code, result.failure["pointer"]) == (11, variable)
