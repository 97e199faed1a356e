"""Prepares a spec's rows and has a process train on them, as whoever starts several would; prints its result.

The first process is stopped by a signal on its way, another one goes on, and writes the adapter.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from job.asked import ToExport, ToTrain
from job.data.build import build_dataset
from job.errors import Interrupted
from job.host.child import CHILDREN_IMPORT, preload
from job.host.log import Log
from job.ledger.checkpoints import TrainingOrigin
from job.several import MODULE, load_request, train_together
from job.source import fetch_data, fetch_model_config, fetch_model_weights
from job.spec import parse_spec
from job.training.environment import prepare_environment
from job.training.machines import Machine
from job.training.team import Team


def main(spec_path: str, folder: str) -> int:
    spec, work = parse_spec(Path(spec_path).read_bytes()), Path(folder) / "work"
    work.mkdir(parents=True)
    prepare_environment(work)
    preload(CHILDREN_IMPORT)
    train, held_out = fetch_data(spec.data, work)
    base = fetch_model_config(spec.model.source, work)
    prepared = build_dataset(spec, train, held_out, base.path, work, lambda done, total: None)
    fetch_model_weights(base)
    load = load_request(base, base.path, prepared, work)
    request = ToTrain(str(work / "store"), TrainingOrigin(spec.run_id, base.public_id, prepared.digest), {})
    with Path(folder, "log").open("w") as file:
        log = Log(file, json_lines=True)
        for stopped in (True, False):
            with Team(MODULE, 1, spec, "cpu", work, log, Machine()) as team:
                team.ask("load", load, log.live)
                if stopped:
                    stored = work / "store" / "checkpoints" / spec.run_id / f"step-{4:08d}" / "checkpoint.json"
                    threading.Thread(target=stop_after, args=[stored], daemon=True).start()
                try:
                    (answer,) = train_together(team, request, log, lambda: None)
                except Interrupted:
                    continue
                assert not stopped, "the training was not interrupted"
                team.ask("export", ToExport(work / "adapter", work / "probe.safetensors"), log.live)
                team.end()
    print(json.dumps(answer.result["result"]))
    return 0


def stop_after(stored: Path) -> None:
    """Stops the training by a signal once this checkpoint is stored."""
    while not stored.exists():
        time.sleep(0.01)
    (process,) = (child for child in psutil.Process().children() if child.cwd().endswith("/together"))
    os.kill(process.pid, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
