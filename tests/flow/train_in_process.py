"""Prepares a spec's rows and has a process train on them, as whoever starts several would; prints its result.

The first process is stopped by a signal on its way, another one goes on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from job.data.build import build_dataset
from job.data.reopen import save
from job.errors import Interrupted
from job.host.child import CHILDREN_IMPORT, Child, preload, run_child
from job.ledger.checkpoints import TrainingOrigin
from job.plan.model_size import size_of_fetched
from job.source import fetch_data, fetch_model_config, fetch_model_weights
from job.spec import parse_spec
from job.training.environment import prepare_environment
from job.training.process import Trained, TrainingRequest

MODULE = "job.training.process"


def main(spec_path: str, folder: str) -> int:
    spec, work = parse_spec(Path(spec_path).read_bytes()), Path(folder) / "work"
    work.mkdir(parents=True)
    prepare_environment(work)
    preload(CHILDREN_IMPORT)
    train, held_out = fetch_data(spec.data, work)
    base = fetch_model_config(spec.model.source, work)
    prepared = build_dataset(spec, train, held_out, base.path, work, lambda done, total: None)
    fetch_model_weights(base)
    request = TrainingRequest(
        spec=spec,
        base=base.path,
        size=size_of_fetched(base.path, base.weight_bytes, local=True),
        prepared=save(prepared, work / "prepared"),
        workdir=work / "training",
        weights=work / "weights.safetensors",
        device="cpu",
        checkpoints=str(work / "store"),
        origin=TrainingOrigin(spec.run_id, base.public_id, prepared.digest),
        machine={},
    )
    stop_after(4, request, work)
    result = run_child(MODULE, request, work / "children", "the training", answer=Trained).result
    print(json.dumps(asdict(result)))
    return 0


def stop_after(step: int, request: TrainingRequest, work: Path) -> None:
    """Begins the training and stops it by a signal once this checkpoint is stored."""
    stored = work / "store" / "checkpoints" / request.origin.run_id / f"step-{step:08d}" / "checkpoint.json"
    with Child(MODULE, request, work / "children", "the training") as child:
        while not stored.exists() and not child.ended():
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGTERM)
        try:
            child.wait()
        except Interrupted:
            return
    raise AssertionError("the training was not interrupted")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
