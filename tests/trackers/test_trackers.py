"""Runs that tell every tracker, with the packages of `.venv-trackers`: Weights & Biases without a network, Trackio,
TensorBoard, and MLflow whose server is gone, or, in `make tracker-test`, there.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.test_canaries import leaks
from tests.flow.running import ROOT, Result, fits_events, run_tiny, valid_stats
from tests.servers import closed_port

TOOLS = ROOT / ".venv-trackers"
PACKAGES = next(TOOLS.glob("lib/python3*/site-packages"), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGES is None, reason="the trackers are in .venv-trackers, which make test makes"),
]
BESIDE = {"TUNEJOB_TEST_PACKAGES": str(PACKAGES)}
KEYS = {"WANDB_API_KEY": "canary0001" * 4, "MLFLOW_TRACKING_TOKEN": "canary-mlflow-0002"}
START_SECONDS = 300  # its imports, beside much else


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A server of MLflow on loopback, with its database and artefacts in `folder`."""
    port = closed_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        str(TOOLS / "bin" / "python"),
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PYTHONPATH": ""}
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


@dataclass(frozen=True)
class Tracked:
    folder: Path
    result: Result
    address: str

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def stats(self) -> dict[str, Any]:
        return valid_stats(self.output / "stats.json")


def around(address: str) -> dict[str, str]:
    """The environment of a run that tells MLflow at `address`, and nobody else outside."""
    return {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        **KEYS,
        **BESIDE,
    }


def run_told(folder: Path, address: str) -> Tracked:
    """A run with all four, MLflow's at `address`."""
    schema = {"$defs": {"a,b": {"type": "string"}}, "type": "object"}  # keys that MLflow does not take
    changes = {"/tracking": ["tensorboard", "wandb", "mlflow", "trackio"], "/evaluation/exact_match_rows": 2,
               "/evaluation/metrics": ["json_valid"], "/evaluation/json_schema": schema}  # fmt: skip
    result = run_tiny(folder, changes, around(address))
    assert result.exit_code == 0, result.stdout[-3000:] + result.stderr[-2000:]
    return Tracked(folder, result, address)


@pytest.fixture(scope="module", params=["gone", pytest.param("there", marks=pytest.mark.long)])
def tracked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracked]:
    folder = tmp_path_factory.mktemp("tracked")
    if request.param == "gone":
        yield run_told(folder, f"http://127.0.0.1:{closed_port()}")
        return
    (server := folder / "server").mkdir()
    with mlflow_server(server) as address:
        yield run_told(folder, address)


def test_a_server_that_is_gone_costs_its_curves_alone(tracked: Tracked) -> None:
    gone = {"mlflow"} if "server" not in {path.name for path in tracked.folder.iterdir()} else set()
    assert {event["tracker"] for event in tracked.result.named("tracking")} == gone
    assert fits_events(tracked.result.events) == []


@pytest.mark.parametrize("tracked", [pytest.param("there", marks=pytest.mark.long)], indirect=True)
def test_mlflow_has_settings_curves_figures_report_and_address(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(PACKAGES)])
    from mlflow import MlflowClient

    client = MlflowClient(tracked.address)
    experiment = client.get_experiment_by_name("tunejob")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["tunejob.failure"]) == ("tiny", "FINISHED", "")
    assert run.data.tags["tunejob.output"] == str(tracked.output)
    assert run.data.params["training.learning_rate"] == "0.01"
    assert run.data.params["evaluation.json_schema._defs.a_b.type"] == "string"
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]
    kept = [json.loads(line) for line in (tracked.output / "report" / "losses.jsonl").read_text().splitlines()]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in kept]
    assert run.data.metrics["trained/held_out_loss"] == tracked.stats["evaluation"]["trained"]["held_out_loss"]
    assert {file.path for file in client.list_artifacts(run.info.run_id, "report")} == {
        "report/report.html",
        "report/summary.md",
    }


def test_wandb_has_left_what_its_sync_needs(tracked: Tracked) -> None:
    """Both parts of the run, with one id: of the training, and of the end."""
    folders = sorted((tracked.output / "report" / "wandb" / "wandb").glob("offline-run-*"))
    assert {folder.name.rpartition("-")[2] for folder in folders} == {tracked.stats["run_id"]}
    assert not [path for folder in folders for path in folder.glob("files/*")], "nothing of the machine's packages"
    raw = b"".join(path.read_bytes() for folder in folders for path in folder.glob("*.wandb"))
    told = (b"learning_rate", b"grad_norm", b"trained/held_out_loss", str(tracked.output).encode(), b"report.html")
    for word in told:
        assert word in raw, word


def test_trackio_has_left_its_database(tracked: Tracked) -> None:
    (database,) = (tracked.output / "report" / "trackio").glob("tunejob*.db")
    rows = [json.loads(row) for (row,) in sqlite3.connect(database).execute("SELECT metrics FROM metrics ORDER BY id")]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 4
    assert rows[-2]["final/trained/held_out_loss"] == tracked.stats["evaluation"]["trained"]["held_out_loss"]
    assert rows[-2]["output"] == str(tracked.output)


def test_tensorboard_has_its_files(tracked: Tracked) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tracked.output / "report" / "tensorboard"))
    found.Reload()
    assert {"loss", "grad_norm", "learning_rate"} <= set(found.Tags()["scalars"])
    assert len(found.Scalars("loss")) == 4


def test_no_key_is_anywhere(tracked: Tracked) -> None:
    assert leaks(KEYS, tracked.result, tracked.folder) == []


@pytest.fixture(params=["offline", pytest.param("mlflow", marks=pytest.mark.long)])
def stopped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tracked]:
    """A run that a gate stops, told to Trackio and Weights & Biases, or to a server of MLflow."""
    there = request.param == "mlflow"
    (server := tmp_path / "server").mkdir()
    with mlflow_server(server) if there else nullcontext(f"http://127.0.0.1:{closed_port()}") as address:
        changes = {
            "/tracking": ["mlflow"] if there else ["wandb", "trackio"],
            "/evaluation/gates": [{"metric": "held_out_loss", "at_most": 0.001}],
        }
        result = run_tiny(tmp_path / "run", changes, around(address))
        assert result.exit_code == 14, result.stdout[-3000:] + result.stderr[-2000:]
        yield Tracked(tmp_path / "run", result, address)


def test_a_run_that_a_gate_stops_has_its_figures_and_says_so(stopped: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, said = stopped.stats["evaluation"]["trained"]["held_out_loss"], stopped.result.failure["message"]
    assert stopped.result.named("tracking") == []
    if (offline := stopped.output / "report" / "wandb").exists():
        raw = b"".join(path.read_bytes() for path in offline.rglob("*.wandb"))
        assert [word for word in ("trained/held_out_loss", said, "report.html") if word.encode() not in raw] == []
        (database,) = (stopped.output / "report" / "trackio").glob("tunejob*.db")
        rows = [json.loads(row) for (row,) in sqlite3.connect(database).execute("SELECT metrics FROM metrics")]
        (last,) = [row for row in rows if "failure" in row]
        assert (last["final/trained/held_out_loss"], last["failure"]) == (loss, said)
        return
    monkeypatch.setattr(sys, "path", [*sys.path, str(PACKAGES)])
    from mlflow import MlflowClient

    client = MlflowClient(stopped.address)
    (run,) = client.search_runs([client.get_experiment_by_name("tunejob").experiment_id])
    assert (run.info.status, run.data.tags["tunejob.failure"]) == ("FAILED", said)
    assert run.data.metrics["trained/held_out_loss"] == loss
    assert "report/report.html" in {file.path for file in client.list_artifacts(run.info.run_id, "report")}


def test_without_its_address_it_is_refused(tmp_path: Path) -> None:
    result = run_tiny(tmp_path, {"/tracking": ["mlflow"]}, {"MLFLOW_TRACKING_URI": "", **BESIDE})
    assert (result.exit_code, result.failure["message"], result.failure["found"]) == (
        11,
        "this tracker has no address",
        "mlflow",
    )
