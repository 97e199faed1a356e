"""Prints part of a lock, with its hashes: `python locks/part.py LOCK --only NAME`, `--without NAME` or
`--without-cuda`.

The image compiles one package by itself, and its CPU variant leaves out torch and NVIDIA's libraries.
"""

import argparse
import re
from pathlib import Path

NOT_ON_CPU = re.compile(r"(nvidia-|cuda-|triton==|torch==)")


def blocks(text: str) -> list[str]:
    """One block of text, with hashes, for each package."""
    return [block for block in re.split(r"\n(?=[a-z])", text.strip()) if not block.startswith("#")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--without", default="")
    parser.add_argument("--without-cuda", action="store_true")
    asked = parser.parse_args()
    for block in blocks(asked.lock.read_text("utf-8")):
        name = block.split("==")[0]
        left_out = name == asked.without or (asked.without_cuda and NOT_ON_CPU.match(block))
        if not left_out and asked.only in ("", name):
            print(block)  # noqa: T201


if __name__ == "__main__":
    main()
