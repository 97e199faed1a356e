"""What a run has made, under a name that a server knows beforehand: each file has the hash of the manifest.

    python -m job.chat.fetched OUTPUT FOLDER [--gguf TYPE | --adapter]

Leaves FOLDER/model.gguf, or FOLDER/adapter/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from job.chat.published import ADAPTER, Published, open_published
from job.errors import InputError, JobError, classify
from job.errors.facts import failure_facts
from job.host.log import Log
from job.ledger.latest import run_at

MODEL = "model.gguf"
STAGE = "serve"


def fetched(run: Published, folder: Path, gguf: str | None) -> Path:
    """A link in `folder` to the GGUF of type `gguf` ("": the first), or for None to the adapter. Raises `InputError`
    where the run has none, or one in several parts, `GateError` for files that are not the published ones.
    """
    files = run.files(ADAPTER) if gguf is None else run.gguf(gguf)
    if not files:
        raise InputError("the run has no adapter: it has trained every weight", where="--adapter")
    if gguf is not None and len(files) > 1:
        raise InputError("this GGUF is in several parts, which go by their names", where="--gguf",
                         found=f"{len(files)} files", expected="one file, of a smaller type")  # fmt: skip
    there = run.fetch(files, folder / "published", hashed=True)
    link = folder / (ADAPTER if gguf is None else MODEL)
    link.unlink(missing_ok=True)
    link.symlink_to((there / (ADAPTER if gguf is None else files[0].key)).resolve())
    return link


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m job.chat.fetched", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--gguf", metavar="TYPE", default="", help="default: the first that the run has made")
    which.add_argument("--adapter", action="store_const", dest="gguf", const=None)
    asked = parser.parse_args(arguments)
    log = Log(sys.stdout, json_lines=True)
    try:
        link = fetched(open_published(run_at(asked.output)), asked.folder, asked.gguf)
    except (JobError, OSError) as error:
        failure = log.clean(classify(error))
        log("failed", **failure_facts(failure, STAGE, whole=True))
        return failure.exit_code
    log("fetch", files=sum(1 for path in [link, *link.rglob("*")] if path.is_file()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
