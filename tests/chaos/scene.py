"""One spec and one output: runs that are killed there, and what must hold after each."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.ledger.manifest import MANIFEST, verify
from job.spec import parse_spec
from job.store import Store, open_store
from job.store.base import TEMPORARY
from tests.chaos.driver import KILLED
from tests.flow.running import LIMIT_SECONDS, Result, Running, tiny, tunejob, write_spec
from tests.forking import environment, run_forked
from tests.servers import S3Server

CHANGES: dict[str, Any] = {"/training/max_steps": 6, "/output/checkpoints": {"every_steps": 2, "keep": 1}}
# An adapter of 8 MB and moments of 17 MB: both are stored in several parts of the smallest size.
MANY_PARTS: dict[str, Any] = CHANGES | {"/lora/r": 512}
NO_RENEWAL = {"TUNEJOB_LEASE_SECONDS": "600"}  # renewals would come at other numbers each time
SHORT_LEASE = {"TUNEJOB_LEASE_SECONDS": "3"}  # a shorter one is lost where the cores are busy


@dataclass(frozen=True)
class Scene:
    """`folder` is the scene's alone; `uri` is its output, on `server` if there is one."""

    folder: Path
    uri: str
    server: S3Server | None = None
    changes: Mapping[str, Any] = field(default_factory=lambda: CHANGES)

    @property
    def spec(self) -> str:
        return write_spec(self.folder / "spec.json", tiny(self.uri, self.changes))

    @property
    def store(self) -> Store:
        return open_store(self.uri)

    def operations(self) -> list[str]:
        """Every operation of a run nobody disturbs, in order."""
        done = self._driven("0", NO_RENEWAL)
        assert done.returncode == 0, done.stdout[-2000:]
        operations: list[str] = json.loads(done.stderr.splitlines()[-1])
        return operations

    def killed(self, point: int | str, lease: Mapping[str, str] = NO_RENEWAL) -> str | None:
        """Runs until right before `point`; the operation that was not to be, None if the run ended without it."""
        done = self._driven(str(point), lease)
        if done.returncode == 0:
            return None
        assert done.returncode == -signal.SIGKILL, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return next(line.removeprefix(f"{KILLED} ") for line in done.stderr.splitlines() if line.startswith(KILLED))

    def killed_after(self, seconds: float) -> None:
        """Runs for so long at most; child processes are in the midst of their work, too."""
        running = Running(("run", self.spec), self.folder / "scratch", {**self._environment, **NO_RENEWAL})
        try:
            running.finish(seconds)
        except subprocess.TimeoutExpired:  # it has been killed
            return

    def _driven(self, point: str, lease: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        scratch = self.folder / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        arguments = [point, f"{self.uri}:{scratch}".split(":"), ["run", self.spec]]
        variables = environment(scratch, {**self._environment, **lease})
        code, out, err = run_forked("tests.chaos.driver:run", arguments, scratch, variables, LIMIT_SECONDS)
        return subprocess.CompletedProcess([], code, out, err)

    def again(self) -> Result:
        return tunejob("run", self.spec, scratch=self.folder / "again", extra=self._environment | SHORT_LEASE)

    @property
    def _environment(self) -> dict[str, str]:
        return self.server.environment() if self.server else {}

    # ------------------------------------------------------------------------------------------ what must hold

    def keeps(self) -> dict[str, str]:
        """SHA-256 by key of what is stored and receipted; no manifest, or a true one, whose files count, too."""
        store = self.store
        stored = {item.key for item in store.list()}
        kept = {
            file["key"]: file["sha256"]
            for key in stored
            if "/done/" in key
            for file in json.loads(store.read(key))["files"]
        }
        if MANIFEST in stored:
            kept |= {file.key: file.sha256 for file in verify(store).files}
        assert {key: store.sha256(key) for key in kept} == kept
        return kept

    def ends_well(self, kept: Mapping[str, str]) -> None:
        """The same spec once more: it succeeds, `kept` is still there, and of killed tries there is nothing."""
        result = self.again()
        assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-2000:]
        listed = {file.key: file.sha256 for file in verify(self.store).files}
        assert kept.items() <= listed.items(), "an artefact that was stored was lost or made anew"
        left_over = list(self.left_over())
        assert not left_over, left_over

    def left_over(self) -> Iterator[str]:
        """Checkpoints, receipts, unfinished uploads; the lease of the last one killed may be there: no harm."""
        run_folder = f"checkpoints/{parse_spec(Path(self.spec).read_bytes()).run_id}/"
        yield from (item.key for item in self.store.list() if item.key.startswith(run_folder))
        if self.server:
            bucket = self.uri.removeprefix("s3://").partition("/")[0]
            yield from (f"parts of {key}" for key in self.server.open_uploads(bucket))
        else:
            yield from (
                path.name for path in Path(self.uri).rglob(f"{TEMPORARY}*") if path.parent.name != "checkpoints"
            )
