"""A run's repository on the Hub: what goes there, under the same keys as at the output, and the token that nothing
else sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.host.child import run_child
from job.hub.client import token
from job.hub.push import environment
from job.spec import HubSpec, JobSpec

PUSHED = (
    "adapter",
    "merged",
    "merged_4bit",
    "gguf",
    "README.md",
)  # reports quote rows of the data: they stay where they are


@dataclass(frozen=True)
class Push:
    """Sends artefacts to `hub.repository` one by one, then shows them all in one commit."""

    spec: JobSpec
    hub: HubSpec
    folder: Path
    token: str = field(repr=False)

    def require_access(self) -> None:
        """Raises `InputError` now if the token could not write there later."""
        self._ask({"operation": "check_access", "private": self.hub.private})

    def stage(self, files: Mapping[str, Path]) -> list[dict[str, Any]]:
        """Sends files (manifest key → path) to the run's branch; returns what `publish` needs to show them."""
        taken = [[str(path), key] for key, path in files.items() if key.split("/")[0] in PUSHED]
        if not taken:
            return []
        contents: list[dict[str, Any]] = self._ask({"operation": "stage", "files": taken, "run_id": self.spec.run_id})[
            "contents"
        ]
        return contents

    def publish(self, contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One commit on main with everything that was staged; its address."""
        message = f"{self.spec.name}, run {self.spec.run_id}"
        asked = {"operation": "publish", "contents": list(contents), "run_id": self.spec.run_id, "message": message}
        return self._ask(asked)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        request |= {"repository": self.hub.repository}
        return run_child(
            "job.hub.push", request, self.folder, f"push to {self.hub.repository}", environment(self.token)
        )


def open_push(spec: JobSpec, folder: Path) -> Push | None:
    """The push that the spec asks for, if any, with the token of the environment; before the job forgets its tokens."""
    if spec.output.hub is None:
        return None
    return Push(spec, spec.output.hub, folder, token())
