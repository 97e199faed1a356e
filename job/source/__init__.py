"""Bringing in what the job reads: a model and data, each pinned to one revision and contained in the work directory."""

from job.hub.origin import go_offline
from job.source.bases import fetch_bases
from job.source.beside import Beside, FetchedRows, fetch_beside, fetch_rows
from job.source.data import FetchedSource, fetch_data, fetch_glimpse
from job.source.model import FetchedModel, check_merge_base, fetch_model_config, fetch_model_weights
from job.source.model_config import check_config

__all__ = [
    "Beside",
    "FetchedModel",
    "FetchedRows",
    "FetchedSource",
    "check_config",
    "check_merge_base",
    "fetch_bases",
    "fetch_beside",
    "fetch_data",
    "fetch_glimpse",
    "fetch_model_config",
    "fetch_model_weights",
    "fetch_rows",
    "go_offline",
]
