"""What every stage needs: what was asked, where results go, what is there already, where scratch is, where to log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from job.host.log import Log
from job.host.stats import Stats
from job.hub.staging import Push
from job.ledger.claim import Claim
from job.ledger.compiled import Compiled
from job.ledger.lease import Lease
from job.ledger.receipts import PINNED, Receipts
from job.spec import JobSpec
from job.store import Store


@dataclass(frozen=True)
class Run:
    """One run. `push` is None where the spec names no Hub repository; `workdir` is scratch, the run's alone."""

    spec: JobSpec
    store: Store
    lease: Lease
    receipts: Receipts
    claim: Claim
    push: Push | None
    workdir: Path
    log: Log
    stats: Stats
    compiled: Compiled

    @property
    def revisions(self) -> Mapping[str, str]:
        """Commits that an earlier try has trained on, by place in the spec: a branch may have moved since."""
        return self.receipts[PINNED].facts["revisions"] if PINNED in self.receipts else {}

    @contextmanager
    def stage(self, name: str, children: bool = False) -> Iterator[None]:
        """Measures one stage, with its `children` if it has any, and shows it to people while it lasts."""
        with self.log.stage(name), self.stats.phase(name, children):
            yield

    @property
    def report(self) -> Path:
        return self.workdir / "report"

    @property
    def children(self) -> Path:
        """Where child processes work."""
        return self.workdir / "children"
