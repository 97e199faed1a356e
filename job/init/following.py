"""The spec of a schedule's next run: an output of its own and, if asked, the adapter of the newest run to go on from.

    python -m job.init.following SPEC NAME FILE [--continue]

NAME is the folder below the spec's `output.uri` that the run gets. Of a run that a gate has stopped there is no
manifest, so it is not the newest one. With `--continue` there must be rows that that one has not had.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job.errors import InputError, JobError, classify
from job.errors.facts import failure_facts
from job.host.log import Log
from job.ledger.latest import newest
from job.ledger.manifest import Manifest
from job.source import fetch_data
from job.source.given_adapter import BELOW, SETTINGS
from job.spec import JobSpec, parse_spec

STAGE = "schedule"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def following(raw: bytes, name: str, goes_on: bool, scratch: Path, log: Log) -> dict[str, Any]:
    """The document of the next run. Raises `InputError` where the newest run has had the same rows, `SpecError` for a
    spec that cannot go on from one.
    """
    if not NAME.fullmatch(name):
        raise InputError("not the name of a folder", where="NAME", found=ascii(name), expected=NAME.pattern)
    spec = parse_spec(raw)
    document: dict[str, Any] = json.loads(raw)
    outputs = spec.output.uri.rstrip("/")
    if goes_on:  # what cannot is refused at the first run, which has nothing to go on from
        parse_spec(json.dumps(document | {"model": document["model"] | {"adapter": f"{outputs}/before"}}).encode())
    if goes_on and (found := newest(outputs, having=f"{BELOW}{SETTINGS}", but=name)):
        folder, manifest = found
        require_new_rows(spec, manifest, folder, scratch)
        document["model"]["adapter"] = f"{outputs}/{folder}"
        log("goes on", run_id=manifest.run_id, output=document["model"]["adapter"])
    document["output"]["uri"] = f"{outputs}/{name}"
    parse_spec(json.dumps(document).encode())
    return document


def require_new_rows(spec: JobSpec, manifest: Manifest, folder: str, scratch: Path) -> None:
    """Raises `InputError` where every training source is, by its hash, as that run has had it."""
    train, _ = fetch_data(spec.data, scratch)
    had = [source["sha256"] for source in manifest.data]
    if all(source.sha256 in had for source in train):
        raise InputError("there are no new rows", where="/data/train",
                         found=f"the rows of run {manifest.run_id}, at {folder}", expected="rows that it has not had",
                         hint="Nothing is to be done until they change")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m job.init.following", description=(__doc__ or "").split("\n")[0])
    for place in ("spec", "name", "file"):
        parser.add_argument(place, metavar=place.upper())
    parser.add_argument("--continue", dest="goes_on", action="store_true")
    asked = parser.parse_args(arguments)
    log = Log(sys.stdout, json_lines=True)
    try:
        with tempfile.TemporaryDirectory(dir=Path(asked.file).parent) as scratch:
            raw = Path(asked.spec).read_bytes()
            document = following(raw, asked.name, asked.goes_on, Path(scratch), log)
        Path(asked.file).write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    except (JobError, OSError) as error:
        failure = log.clean(classify(error))
        log("failed", **failure_facts(failure, STAGE, whole=True))
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
