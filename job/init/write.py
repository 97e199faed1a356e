"""A proposed spec as a file, and its reasons as lines for people."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import IO

from job.errors import SpecError
from job.host.log import Log
from job.init.propose import Proposal
from job.report.samples import LEARNED

WIDTH = 10  # of a topic


def refuse_to_overwrite(output: str | None, force: bool) -> None:
    """Raises `SpecError` where `output` is a file already, before anything is looked at."""
    if output and not force and Path(output).exists():
        hint = "Choose another name; --force writes over it"
        raise SpecError("this file is there already", where="-o", found=output, expected="a new file", hint=hint)


def write(proposal: Proposal, output: str | None, out: IO[str], log: Log) -> None:
    """The spec to the file `output` or to `out`, its reasons to the log.

    Raises `SpecError` where it cannot be written.
    """
    text = json.dumps(proposal.document, indent=2, ensure_ascii=False) + "\n"
    if output:
        try:
            Path(output).write_text(text, "utf-8", newline="")
        except OSError as error:
            raise SpecError(f"the spec cannot be written: {error.strerror}", where="-o", found=output) from None
    else:
        print(text, end="", file=out, flush=True)
    for topic, words in proposal.reasons:
        log.say(f"{topic:<{WIDTH}}{words}")
    marked = f"The first rows as the model will read them; it learns what is between {LEARNED[0]} and {LEARNED[1]}."
    name = shlex.quote(output or "spec.json")
    following = f"Next: tunejob validate {name} && tunejob run {name}"
    for part in (*([marked] if proposal.samples else []), *proposal.samples, following):
        for line in ("", *part.rstrip().split("\n")):
            log.say(line)
