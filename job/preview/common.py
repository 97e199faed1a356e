"""GPUs, hours and money for jobs that are common: what `tunejob plan` says of them, without their rows and weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from job.plan.cards import CARDS, GB
from job.plan.gpu_memory import least_card_bytes
from job.plan.model_size import ModelSize, size_of_config
from job.preview.reckoning import OnCard, Scheduler, on_card, scheduler
from job.preview.text import WORDS, duration
from job.report.markdown import money, table
from job.spec import JobSpec, parse_spec

JOBS = "schemas/common_jobs.json"
DRAWN = 2000  # rows, a sample of all of a job


@dataclass(frozen=True)
class CommonJob:
    """A job of `JOBS` with its own spec; `scheduled` has its rows."""

    title: str
    spec: JobSpec
    size: ModelSize
    scheduled: Scheduler

    def on(self, key: str, prices: Mapping[str, float]) -> OnCard:
        return on_card(self.spec, self.size, self.scheduled, 0.0, key, prices)


def jobs_table(root: Path) -> str:
    """A row for each GPU that is known. `root`: of the repository."""
    jobs, prices = list(common_jobs(root)), json.loads((root / JOBS).read_bytes())["prices"]
    rows = [["GPU memory, least", "", "", *(f"{least_card_bytes(j.spec, j.size) / GB:.1f} GB" for j in jobs)]]
    rows.append(["steps", "", "", *(f"{_steps(job):,}" for job in jobs)])
    for key, card in CARDS.items():
        rows.append([card.name, f"{card.gb} GB", f"{prices[key]:.2f}", *(_cell(job.on(key, prices)) for job in jobs)])
    return "\n".join(table(["GPU", "memory", "an hour, example", *(job.title for job in jobs)], rows)).rstrip()


def common_jobs(root: Path) -> Iterator[CommonJob]:
    """In the order of their file."""
    for job in json.loads((root / JOBS).read_bytes())["jobs"]:
        spec = parse_spec((root / job["spec"]).read_bytes())
        size = size_of_config(job["config"], job["weight_bytes"], local=False)
        lengths = drawn(spec.model.max_seq_length, **job["lengths"])
        yield CommonJob(job["title"], spec, size, scheduler(spec, lengths, job["rows"] / DRAWN))


def drawn(most: int, median: float, spread: float) -> list[int]:
    """Tokens of rows whose lengths are log-normal: the same ones each time, none longer than `most`."""
    logarithm = NormalDist(math.log(median), spread)
    lengths = (math.exp(logarithm.inv_cdf((number + 0.5) / DRAWN)) for number in range(DRAWN))
    return [min(most, max(1, round(length))) for length in lengths]


def _steps(job: CommonJob) -> int:
    return job.scheduled(job.spec.training.batch_size, job.spec.data.packing).steps


def _cell(on: OnCard) -> str:
    if on.seconds is None:
        return WORDS[on.fits]
    said = "" if on.fits == "yes" else f" ({WORDS[on.fits]})"
    return f"{duration(on.seconds)}, {money(on.cost)}{said}"
