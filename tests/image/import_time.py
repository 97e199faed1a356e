"""Seconds that `import unsloth, trl` takes in the image, with and without the bytecode that its build made.

    TUNEJOB_IMAGE=localhost/tunejob:cuda python -m tests.image.import_time

Each figure is a fresh process, the best of four, files in the page cache. "gpu" takes the path of a GPU without having
one (UNSLOTH_ALLOW_CPU; it then leaves TRL's trainers out of the import, so they are asked for by name), with the files
of an earlier import's trainers kept or not.
"""

from __future__ import annotations

import subprocess

from tests.image.container import IMAGE

PROGRAM = """
import os, sys, time
start = time.monotonic()
import unsloth, trl
imported = time.monotonic()
if sys.argv[1] == "gpu":
    from unsloth.models.rl import patch_trl_rl_trainers
    patch_trl_rl_trainers()
print("SECONDS", round(imported - start, 2), round(time.monotonic() - imported, 2))
"""
SCRIPT = """
export HF_HUB_OFFLINE=1 UNSLOTH_DISABLE_STATISTICS=1 TRL_EXPERIMENTAL_SILENCE=1 PYTHONDONTWRITEBYTECODE=1
export UNSLOTH_COMPILE_LOCATION=/tmp/unsloth
[ "$1" = gpu ] && export UNSLOTH_ALLOW_CPU=1 || export UNSLOTH_FORCE_CPU=1
[ "$2" = sources ] && find /opt/tunejob/lib -name __pycache__ -prune -exec rm -rf {} +
for i in 1 2 3 4; do
  [ "$3" = kept ] || rm -rf /tmp/unsloth
  python -c "$PROGRAM" "$1" 2>/dev/null | grep SECONDS
done
"""


def measure(device: str, code: str, trainers: str) -> tuple[float, float]:
    """(seconds of the import, of the trainers) in a writable copy of the image."""
    command = [
        "podman",
        "run",
        "--rm",
        "--user",
        "0",
        "--network",
        "none",
        "--env",
        f"PROGRAM={PROGRAM}",
        "--entrypoint",
        "/bin/sh",
    ]
    limits = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096", "--runtime", "/usr/sbin/runc"]
    done = subprocess.run(
        [*command, *limits, IMAGE, "-c", SCRIPT, "sh", device, code, trainers],
        check=True,
        capture_output=True,
        text=True,
    )
    runs = [tuple(map(float, line.split()[1:])) for line in done.stdout.splitlines()]
    return min(run[0] for run in runs), min(run[1] for run in runs)


if __name__ == "__main__":
    for device in ("cpu", "gpu"):
        for code in ("bytecode", "sources"):
            for trainers in ("kept", "new") if device == "gpu" else ("none",):
                imported, made = measure(device, code, trainers)
                print(
                    f"{device}, {code}, trainers {trainers}: import {imported:.1f} s, trainers {made:.1f} s", flush=True
                )
