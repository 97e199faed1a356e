"""MLflow: the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.tracking.record import PROJECT, Begun, Session, Tracker, flat

URI = "MLFLOW_TRACKING_URI"
RUN_ID, OUTPUT, FAILURE = "tunejob.run_id", "tunejob.output", "tunejob.failure"  # tags
AT_ONCE, LONGEST = 100, 500  # parameters of a request, and characters of a value, that every server takes
# Signs that a name may not have: keys of a JSON schema have them, and figures of a benchmark with a filter.
REFUSED, LONGEST_NAME = re.compile(r"[^/\w.\- ]"), 250
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


@dataclass
class Mlflow:
    client: Any
    run: str

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.client.log_metric(self.run, plain(name), value, step=step)

    def end(self, figures: Mapping[str, float], address: str, files: Sequence[Path], failure: str) -> None:
        for name, value in figures.items():
            self.client.log_metric(self.run, plain(name), value)
        for name, text in ((OUTPUT, address), (FAILURE, failure)):
            self.client.set_tag(self.run, name, text)
        for path in files:
            self.client.log_artifact(self.run, str(path), "report")
        self.client.set_terminated(self.run, "FAILED" if failure else "FINISHED")

    def close(self) -> None:
        """It stays as running."""


def plain(name: str) -> str:
    """A name that every server takes."""
    return REFUSED.sub("_", name)[:LONGEST_NAME]


def begin(begun: Begun) -> Session:
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient(os.environ[URI])
    where = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(where)
    experiment = known.experiment_id if known else client.create_experiment(where)
    earlier = client.search_runs([experiment], f"tags.`{RUN_ID}` = '{begun.run_id}'", max_results=1)
    if earlier:
        client.update_run(earlier[0].info.run_id, status="RUNNING")
        return Mlflow(client, earlier[0].info.run_id)
    run = client.create_run(experiment, run_name=begun.name, tags={RUN_ID: begun.run_id}).info.run_id
    given = {plain(name).replace("/", "_"): str(value)[:LONGEST] for name, value in flat(begun.config).items()}
    settings = [Param(name, value) for name, value in given.items()]
    for first in range(0, len(settings), AT_ONCE):
        client.log_batch(run, params=settings[first : first + AT_ONCE])
    return Mlflow(client, run)


MLFLOW = Tracker("mlflow", "mlflow", (URI, "MLFLOW_TRACKING_TOKEN"), needed=URI, begin=begin)
