"""What a run fetches over a network, and how long that takes at an assumed rate: nobody here knows the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.plan.duration import Stage
from job.source import FetchedModel, FetchedSource
from job.spec import JobSpec

BYTES_A_SECOND = 100_000_000  # of a machine with a gigabit a second
AFTER = {"weights": "data"}  # stages that are there for fetching alone, and what each comes after; others come first


@dataclass(frozen=True)
class Fetching:
    """Bytes by stage of a run; stages that fetch nothing are left out."""

    stages: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.stages.values())

    def added_to(self, found: Sequence[Stage]) -> list[Stage]:
        """The stages of a run, with the time that fetching takes."""
        stages = list(found)
        for name, count in self.stages.items():
            names, seconds = [stage.name for stage in stages], count / BYTES_A_SECOND
            if name in names:
                at = names.index(name)
                stages[at] = Stage(name, stages[at].seconds + seconds)
            else:
                stages.insert(names.index(AFTER[name]) + 1 if name in AFTER else 0, Stage(name, seconds))
        return stages


NOTHING = Fetching({})


def fetching(
    spec: JobSpec, sources: Sequence[FetchedSource], base: FetchedModel, merge_base: FetchedModel, documents: int
) -> Fetching:
    """Of a run that begins anew: `sources` of rows, models whose configs are here, bytes of benchmarks' documents."""
    rows = [file for source in sources if "://" in source.spec.source for file in source.files]
    models = [base, *([merge_base] if merge_base is not base and spec.needs_merge else [])]
    configs = [model.path / name for model in models if "://" in model.source for name in model.files]
    adapters = [file for one in base.adapters if "://" in one.source for file in one.path.iterdir()]
    found = {
        "fetch": _bytes(rows),
        "data": _bytes([*configs, *adapters]) + documents,
        "weights": sum(model.copied_bytes for model in models),
    }
    return Fetching({stage: count for stage, count in found.items() if count})


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)
