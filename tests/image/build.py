"""Builds the image on a Debian base with buildah: `python -m tests.image.build cpu|cuda [TAG]`.

    cpu    torch's CPU build, without NVIDIA's libraries: what `make image-test` runs
    cuda   the GPU image's own lock; proves that it installs, and that it says what is missing where there is no GPU

Only the base differs from the shipped image: no registry is needed. What this machine's pip is configured with
(indexes, a CA) goes into the build as secrets and read-only mounts, so nothing of it is left in the image.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from job import __version__

ROOT = Path(__file__).parents[2]
BASE = "localhost/tunejob-base:bookworm"
PACKAGES = "buildah podman runc crun catatonit conmon mmdebstrap"
TORCH = {"cpu": "torch==2.13.0+cpu", "cuda": ""}
BUILD_CANARY = "tunejob-build-canary-7f3a"  # in the settings of every build, and so to be found in no layer
CA = Path("/etc/ssl/certs/ca-certificates.crt")
NO_PAPERS = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
LICENCES = "--dpkgopt=path-include=/usr/share/doc/*/copyright"


def require_tools() -> None:
    missing = [tool for tool in ("buildah", "podman", "runc", "mmdebstrap") if not shutil.which(tool)]
    if missing:
        sys.exit(f"not here: {', '.join(missing)}. On Debian: apt-get install --no-install-recommends {PACKAGES}")


def make_base() -> None:
    """A minimal Debian from this machine's own package sources, once."""
    if subprocess.run(["buildah", "inspect", "--type", "image", BASE], capture_output=True).returncode == 0:
        return
    with tempfile.TemporaryDirectory() as folder:
        root = f"{folder}/base.tar"
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--include=ca-certificates",
            *NO_PAPERS,
            LICENCES,
            "bookworm",
            root,
        ]
        sources = "/etc/apt/sources.list.d/debian.sources"
        subprocess.run([*command, *([sources] if Path(sources).exists() else [])], check=True)
        subprocess.run(["podman", "import", "--quiet", root, BASE], check=True)


def pip_settings() -> tuple[str, list[str]]:
    """(the text of a pip.conf as pip here would read it, folders of this machine that it names)."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    settings, folders = {"cert": ""}, set()
    for line in listed.splitlines():
        key, _, quoted = line.partition("=")
        settings[key.split(".")[-1]] = value = " ".join(shlex.split(quoted)).replace("\\n", " ")
        if not key.endswith("cert"):
            folders |= {word.removeprefix("file://") for word in value.split() if word.startswith(("/", "file:///"))}
    del settings["cert"]  # the CA goes to where pip looks anyway
    mounts = {str(Path(folder).parent if folder.endswith("/simple") else Path(folder)) for folder in folders}
    lines = [
        f"{key} = {value}"
        for key, value in settings.items()
        if key in ("index-url", "extra-index-url", "find-links", "timeout")
    ]
    return "\n".join([f"# {BUILD_CANARY}", "[global]", f"cert = {CA}", *lines, ""]), sorted(mounts)


def build(variant: str, tag: str, *options: str) -> float:
    """Builds `tag`; the seconds it took."""
    text, mounts = pip_settings()
    began = time.monotonic()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as pip:
        pip.write(text)
        pip.flush()
        arguments = {"BASE": BASE, "PYTHON": "python3.11", "TORCH": TORCH[variant], "VERSION": __version__}
        subprocess.run(
            ["buildah", "build", "--layers", "--isolation", "chroot", "--network", "host", "--tag", tag, *options,
             "--secret", f"id=pip,src={pip.name}", "--secret", f"id=ca,src={CA}",
             *(word for folder in mounts for word in ("--volume", f"{folder}:{folder}:ro")),
             *(word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")), "."],
            check=True, cwd=ROOT, env=os.environ | {"BUILDAH_FORMAT": "oci"},
        )  # fmt: skip
    return time.monotonic() - began


def size_bytes(tag: str) -> int:
    listed = subprocess.run(["podman", "image", "inspect", tag], check=True, capture_output=True, text=True).stdout
    return int(json.loads(listed)[0]["Size"])


if __name__ == "__main__":
    chosen = sys.argv[1]
    name = sys.argv[2] if len(sys.argv) > 2 else f"localhost/tunejob:{chosen}"
    require_tools()
    make_base()
    seconds = build(chosen, name, *sys.argv[3:])
    print(f"{name}: {size_bytes(name) / 1e9:.2f} GB, built in {seconds:.0f} s")
