"""Lines of a log as the run said them, out of the forms in which container engines keep logs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

STREAMS = ("stdout", "stderr")
CRI = re.compile(r"\d{4}-\d\d-\d\dT\S+ (stdout|stderr) ([FP]) ")  # P: a part of a line, F: its end


def spoken(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Each line without its end, and whether a run may have said it: what is known to be of stderr is from others.

    docker's json-file log and the files of Kubernetes' nodes are unpacked, the parts of long lines joined.
    """
    parts = dict.fromkeys(STREAMS, "")
    for line in lines:
        stream, text = _unpacked(line)
        if not stream:
            yield text.rstrip("\r\n"), True
            continue
        parts[stream] += text
        if text.endswith("\n"):
            yield parts[stream].rstrip("\r\n"), stream == STREAMS[0]
            parts[stream] = ""
    yield from ((text, stream == STREAMS[0]) for stream, text in parts.items() if text)


def _unpacked(line: str) -> tuple[str, str]:
    """The stream of a packed line and its text, with its end if it has come to one; no stream for any other line."""
    if found := CRI.match(line):
        text = line[found.end() :].rstrip("\r\n")
        return found[1], f"{text}\n" if found[2] == "F" else text
    if line.startswith('{"log":'):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return "", line
        if isinstance(record.get("log"), str) and record.get("stream") in STREAMS:
            return record["stream"], record["log"]
    return "", line
