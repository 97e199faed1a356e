"""The image under `podman run` as a strict cluster would run it: any uid of group 0, read-only root, no capability."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGE = os.environ.get("TUNEJOB_IMAGE", "")
LIMIT_SECONDS = 1800
# This machine may not raise limits, and its cgroups may be hybrid, which crun refuses.
CONTAINERS_CONF = '[containers]\ndefault_ulimits=["nofile=4096:4096","nproc=4096:4096"]\n[engine]\nruntime="runc"\n'


@dataclass
class Ended:
    exit_code: int
    stdout: str
    stderr: str
    last_words: str
    seconds: float

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]

    @property
    def said(self) -> str:
        return self.stdout[-3000:] + self.stderr[-3000:]


@dataclass
class Container:
    """One run of the image. `folder` holds its /scratch, which is all it may write to besides /tmp."""

    folder: Path
    user: int = 10001
    network: str = "none"
    mounts: Mapping[Path, str] = field(default_factory=dict)  # here -> there, read-only
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.name = f"tunejob-test-{uuid.uuid4().hex[:8]}"
        self.scratch = self.folder / "scratch"
        self._conf, self._words = self.folder / "containers.conf", self.folder / "termination-log"
        self._out, self._err = self.folder / "stdout", self.folder / "stderr"
        self.scratch.mkdir(parents=True)
        self.scratch.chmod(0o777)  # as a cluster's emptyDir
        self._conf.write_text(CONTAINERS_CONF)
        self._words.touch()
        self._words.chmod(0o666)

    def start(self, *arguments: str) -> Container:
        strict = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        mounts = {self.scratch: "/scratch", self._words: "/dev/termination-log"}
        command = [
            "podman", "run", "--rm", "--name", self.name, *strict,
            "--user", f"{self.user}:0", "--network", self.network,
            "--tmpfs", "/tmp:rw,size=512m,mode=1777", *(f"--volume={here}:{there}" for here, there in mounts.items()),
            *(f"--volume={here}:{there}:ro" for here, there in self.mounts.items()),
            *(f"--env={name}={value}" for name, value in self.environment.items()), *self.options, IMAGE, *arguments,
        ]  # fmt: skip
        self._began = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=self._host(), cwd=self.folder
            )
        return self

    def _host(self) -> dict[str, str]:
        return os.environ | {"CONTAINERS_CONF": str(self._conf)}

    def wait_until_it_says(self, text: str, seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while text not in self._out.read_text("utf-8"):
            assert self._process.poll() is None, self.finish().said
            assert time.monotonic() < deadline, self.stop().said
            time.sleep(0.1)

    def stop(self, grace_seconds: int = 60) -> Ended:
        """What a cluster does: SIGTERM to PID 1, SIGKILL after the grace period."""
        subprocess.run(
            ["podman", "stop", "--time", str(grace_seconds), self.name],
            check=True,
            capture_output=True,
            env=self._host(),
        )
        return self.finish()

    def finish(self) -> Ended:
        try:
            code = self._process.wait(LIMIT_SECONDS)
        finally:
            subprocess.run(
                ["podman", "rm", "--force", "--ignore", self.name], check=True, capture_output=True, env=self._host()
            )
        seconds = time.monotonic() - self._began
        return Ended(
            code, self._out.read_text("utf-8"), self._err.read_text("utf-8"), self._words.read_text("utf-8"), seconds
        )

    def run(self, *arguments: str) -> Ended:
        return self.start(*arguments).finish()
