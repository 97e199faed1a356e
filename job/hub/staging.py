"""A run's repository on the Hub: what goes there, by the output's keys, and the token that nothing else sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from job.export.kinds import EXPORTS
from job.host.child import run_child
from job.hub.client import token
from job.hub.push import PushAnswer, PushReport, PushRequest, Sent, environment
from job.hub.repository import Content
from job.spec import HubSpec, JobSpec

MODULE = "job.hub.push"
# Reports quote rows of the data: they stay where they are
PUSHED = ("README.md", *(kind.folder for kind in EXPORTS.values()))


@dataclass(frozen=True)
class Push:
    """Sends artefacts to `hub.repository` one by one, then shows them all in one commit."""

    spec: JobSpec
    hub: HubSpec
    folder: Path
    token: str = field(repr=False)

    def require_access(self) -> None:
        """Raises `InputError` now if the token could not write there later."""
        self._ask(PushRequest("check_access", self.hub.repository, private=self.hub.private))

    def stage(self, files: Mapping[str, Path]) -> list[dict[str, Any]]:
        """Sends files (manifest key → path) to the run's branch; returns what `publish` needs to show them."""
        taken = tuple(Sent(path, key) for key, path in files.items() if key.split("/")[0] in PUSHED)
        if not taken:
            return []
        staged = self._ask(PushRequest("stage", self.hub.repository, self.spec.run_id, files=taken))
        return [asdict(content) for content in staged.contents]

    def publish(self, contents: Sequence[dict[str, Any]]) -> PushReport:
        """One commit on main with everything that was staged; its address."""
        run_id, shown = self.spec.run_id, tuple(Content(**content) for content in contents)
        message = f"{self.spec.name}, run {run_id}"
        report = self._ask(PushRequest("publish", self.hub.repository, run_id, message, contents=shown)).report
        return cast("PushReport", report)

    def _ask(self, request: PushRequest) -> PushAnswer:
        what = f"push to {self.hub.repository}"
        return run_child(MODULE, request, self.folder, what, environment(self.token), answer=PushAnswer)


def open_push(spec: JobSpec, folder: Path) -> Push | None:
    """The push that the spec asks for, if any, with the token of the environment; before the job forgets its tokens."""
    if spec.output.hub is None:
        return None
    return Push(spec, spec.output.hub, folder, token())
