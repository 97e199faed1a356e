"""Weights & Biases. With WANDB_MODE=offline its files lie under report/, for `wandb sync`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.tracking.record import PROJECT, Begun, Session, Tracker

FINISH_SECONDS = 120.0  # for what is not sent yet: a server that went away would be waited for without end


@dataclass
class Wandb:
    run: Any

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def end(self, figures: Mapping[str, float], address: str, files: Sequence[Path], failure: str) -> None:
        import wandb

        self.run.summary.update({**figures, "output": address, "failure": failure})
        report = wandb.Artifact(f"report-{self.run.id}", type="report", metadata={"output": address})
        for path in files:
            report.add_file(str(path))
        self.run.log_artifact(report)
        self.run.finish(exit_code=1 if failure else 0)

    def close(self) -> None:
        self.run.finish()


def begin(begun: Begun) -> Session:
    import wandb

    begun.folder.mkdir(parents=True, exist_ok=True)
    # Nothing of this machine, of the code or of what is printed
    quiet = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, save_code=False, x_disable_meta=True,
        x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        finish_timeout=FINISH_SECONDS, finish_timeout_raises=True,
    )  # fmt: skip
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return Wandb(
        wandb.init(
            project=project, id=begun.run_id, name=begun.name, config=dict(begun.config), resume="allow",
            dir=str(begun.folder), settings=quiet,
        )
    )  # fmt: skip


WANDB = Tracker("wandb", "wandb", ("WANDB_API_KEY",), begin=begin)
