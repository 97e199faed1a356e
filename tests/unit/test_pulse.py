"""The figures of a run as OpenMetrics text."""

from __future__ import annotations

import math
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from job.host import pulse as beating
from job.host.pulse import GATEWAY, HEARTBEAT, HELP, HELPS, METRICS, Pulse, State, open_metrics
from job.host.requests import request
from tests.servers import closed_port

HEARD = [
    ("begin", {"stage": "baseline"}),
    ("baseline", {"done": 1, "total": 9}),
    ("baseline", {"held_out_loss": 2.5, "note": "no figure"}),
    ("begin", {"stage": "train"}),
    (
        "train",
        {
            "done": 3,
            "total": 20,
            "step": 3,
            "loss": math.nan,
            "grad_norm": math.inf,
            "learning_rate": 1e-5,
            "eta_seconds": 4,
        },
    ),
    ("delivered", {"artefact": "gguf-q8_0", "held_out_loss": 0.5}),
]


def test_names_are_escaped_and_numbers_spelled_as_the_format_has_them() -> None:
    state = State("b17326048ef2dc7e", 'a "b" \\ c\nd')
    for event, fields in HEARD:
        state.hear(event, fields)
    text = open_metrics(state)
    assert 'tunejob_run_info{run_id="b17326048ef2dc7e",name="a \\"b\\" \\\\ c\\nd"} 1.0\n' in text
    assert "tunejob_train_loss NaN\n" in text
    assert "tunejob_train_grad_norm +Inf\n" in text
    assert "tunejob_train_learning_rate 1e-05\n" in text
    assert "# UNIT tunejob_train_eta_seconds seconds\n" in text
    assert 'tunejob_stage_total{stage="train"} 20.0\n' in text
    evaluation = [line for line in text.splitlines() if line.startswith("tunejob_evaluation")]
    assert evaluation == [
        'tunejob_evaluation{model="base",metric="held_out_loss"} 2.5',
        'tunejob_evaluation{model="gguf-q8_0",metric="held_out_loss"} 0.5',
    ]
    assert "tunejob_finished 0.0\n# EOF\n" in text
    assert "exit_code" not in text
    state.exit_code = 14
    assert "tunejob_exit_code 14.0\n# EOF\n" in open_metrics(state)


def test_each_family_is_there_once_and_described() -> None:
    state = State("b17326048ef2dc7e", "name", exit_code=0)
    for event, fields in HEARD:
        state.hear(event, fields)
    families = [line.split()[2] for line in open_metrics(state).splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    assert set(families) == set(HELP) - {"tunejob_train_tokens_per_second"}


def test_what_nobody_gets_is_known_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path without a name, a folder that is not there, a server that is not there; another is there later."""
    missing = tmp_path / "missing" / "metrics"
    for name, value in ((HEARTBEAT, "/"), (METRICS, str(missing)), (GATEWAY, f"127.0.0.1:{closed_port()}")):
        monkeypatch.setenv(name, value)
    pulse = Pulse("b17326048ef2dc7e", "name")
    assert set(pulse.faults) == {HEARTBEAT, METRICS}
    missing.parent.mkdir()
    pulse.end(0)
    assert set(pulse.faults) == {HEARTBEAT, GATEWAY}
    assert "must begin with http" in pulse.faults[GATEWAY]


def test_a_machine_that_helps_has_a_heartbeat_and_no_say_at_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pods of all machines have one probe and one environment; only the first says `start`."""
    path = tmp_path / "heartbeat"
    monkeypatch.setenv(HEARTBEAT, str(path))
    monkeypatch.setenv(GATEWAY, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr(beating, "BEAT_SECONDS", 0.02)
    pulse = Pulse("b17326048ef2dc7e", "name")
    path.unlink()
    pulse(HELPS, {})
    deadline = time.monotonic() + 5
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()
    pulse.end(0)
    assert (pulse.helps, pulse.faults) == (True, {})


def test_a_server_that_never_ends_its_answer_is_left_in_time() -> None:
    """A byte now and then is not an answer. A few such requests stay open, and others are not in their way."""
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while not ended.wait(0.02):
                connection.sendall(b"H")

    def serve(listening: socket.socket) -> None:
        for _ in range(5):
            threading.Thread(target=drip, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        begun = time.monotonic()
        for _ in range(4):
            with pytest.raises(TimeoutError, match="no answer within"):
                request(address, "POST", b"", {}, 0.1)
        with pytest.raises(TimeoutError, match="earlier requests"):
            request(address, "POST", b"", {}, 5)
        with pytest.raises(TimeoutError, match="no answer within"):
            request(f"{address}/hook", "POST", b"", {}, 0.1)
        assert time.monotonic() - begun < 4
        ended.set()
