"""Experiment trackers: one record each, in `TRACKERS`."""

from __future__ import annotations

from job.tracking.mlflow import MLFLOW
from job.tracking.record import Begun, Session, Tracker
from job.tracking.trackio import TRACKIO
from job.tracking.wandb import WANDB

TENSORBOARD = Tracker("tensorboard", "tensorboard")
TRACKERS = {tracker.name: tracker for tracker in (TENSORBOARD, WANDB, MLFLOW, TRACKIO)}
IN_IMAGE = (TENSORBOARD.name,)  # the others are in the variant that is built with TRACKERS=1

__all__ = ["IN_IMAGE", "TRACKERS", "Begun", "Session", "Tracker"]
