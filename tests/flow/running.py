"""Runs the real command in a process of its own and reads what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from job.spec.strict import StrictValidator, load_schema
from tests.forking import COMMAND, ROOT, environment, fork, may_be_forked, run_forked, start
from tests.specs import LEFT_OUT, changed
from tests.tiny import tiny_dir

DEMO = ROOT / "tests" / "demo"
LIMIT_SECONDS = 560  # the demo takes half of it on one core beside other tests


@dataclass(frozen=True)
class Result:
    """How a command ended. `events` are the JSON lines of stdout, `last_words` the termination message."""

    exit_code: int
    events: list[dict[str, Any]]
    stdout: str
    stderr: str
    seconds: float
    last_words: str

    def named(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]

    @property
    def failure(self) -> dict[str, Any]:
        """The last log line of a run that failed."""
        assert self.events[-1]["event"] == "failed", self.stdout + self.stderr
        return self.events[-1]


class Running:
    """A command in progress."""

    def __init__(
        self, arguments: tuple[str, ...], scratch: Path, extra: Mapping[str, str] | None = None, cwd: Path = ROOT,
        forked: bool | None = None, given: str = "",
    ) -> None:  # fmt: skip
        """`forked` says how the process begins (`tests.forking`); where it does not, the quickest way that gives the
        same. `given` is the standard input of one that is forked.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch
        self._last_words = scratch / "termination-log"
        self._last_words.unlink(missing_ok=True)
        self._out, self._err = (scratch / "stdout").open("wb"), (scratch / "stderr").open("wb")
        self.start = time.monotonic()
        streams, variables = (self._out.fileno(), self._err.fileno()), environment(scratch, extra)
        if may_be_forked(arguments, extra or {}) if forked is None else forked:
            (scratch / "stdin").write_text(given)
            with (scratch / "stdin").open("rb") as read:
                self._process = fork(
                    "job.__main__:main", [list(arguments)], streams, cwd, variables, extra, read.fileno()
                )
        else:
            self._process = start([*COMMAND, *arguments], streams, cwd, variables)

    @property
    def pid(self) -> int:
        return self._process.pid

    def says(self, text: str) -> bool:
        return text in (self._scratch / "stdout").read_text("utf-8")

    def wait_until(self, met: Callable[[Running], bool], seconds: float = 120) -> None:
        """Returns once `met`; raises `AssertionError` if the command ends or the time is up before."""
        deadline = time.monotonic() + seconds
        while not met(self):
            assert self._process.poll() is None, self.finish().stdout
            assert time.monotonic() < deadline, self.kill().stdout
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> Result:
        self._process.kill()
        return self.finish()

    def finish(self, seconds: float = LIMIT_SECONDS) -> Result:
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        taken = time.monotonic() - self.start
        self._out.close()
        self._err.close()
        stdout = (self._scratch / "stdout").read_text("utf-8")
        events = [strict(line) for line in stdout.splitlines() if line.startswith('{"time"')]
        last_words = self._last_words.read_text("utf-8") if self._last_words.exists() else ""
        return Result(code, events, stdout, (self._scratch / "stderr").read_text("utf-8", "replace"), taken, last_words)


def tunejob(
    *arguments: str,
    scratch: Path,
    extra: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    forked: bool | None = None,
    given: str = "",
) -> Result:
    """Runs `python -m job …` to its end."""
    return Running(arguments, scratch, extra, cwd, forked, given).finish()


def tiny(output: Path | str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A spec that trains the tiny model for four steps; `changes` go to JSON pointers, the last word is theirs."""
    quick = {
        "/name": "tiny",
        "/model": {"source": str(tiny_dir()), "max_seq_length": 128, "backend": "peft"},
        "/data/train/0": {"source": str(DEMO / "train.jsonl"), "format": "messages", "limit": 32},
        "/data/held_out": {"sources": [{"source": str(DEMO / "held_out.jsonl"), "format": "messages", "limit": 8}]},
        "/training": {"max_steps": 4, "batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 0.01},
        "/training/gradient_checkpointing": False,
        "/evaluation": {"prompts": ["Turn on the lamp."], "max_new_tokens": 4},
        "/tracking": [],
        "/output/uri": str(output),
    }
    wanted = quick | dict(changes or {})
    return changed({pointer: value for pointer, value in wanted.items() if value is not LEFT_OUT})


def fits_events(events: Iterable[dict[str, Any]]) -> list[str]:
    """What of them is not as `schemas/events.schema.json` has it."""
    validator = StrictValidator(load_schema("events"))
    return [f"{event['event']}: {fault.message}" for event in events for fault in validator.iter_errors(event)]


def run_tiny(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    extra: Mapping[str, str] | None = None,
    forked: bool | None = None,
) -> Result:
    """Runs `tiny` with its output in `folder/out`."""
    spec = write_spec(folder / "spec.json", tiny(folder / "out", changes))
    return tunejob("run", spec, scratch=folder / "scratch", extra=extra, forked=forked)


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """The largest size of all files below `folder`, links aside, seen while the block runs."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], bytes_below(str(folder)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def bytes_below(folder: str) -> int:
    """Of all files that are not links. By `os.scandir`: fifty looks a second take a tenth of a core otherwise."""
    found = 0
    with suppress(OSError), os.scandir(folder) as entries:  # gone meanwhile
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    found += bytes_below(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    found += entry.stat(follow_symlinks=False).st_size
    return found


def planned_and_seen(output: Path, work: Path, peak_bytes: int) -> tuple[int, int]:
    """Bytes of disk that the exports were to need, and those they took; rows and caches were there before."""
    steps = document(output / "report" / "exports.json")["plan"]
    other = [path for folder in ("data", "cache") for path in work.rglob(f"{folder}/**/*") if path.is_file()]
    return max(step["disk_bytes"] for step in steps), peak_bytes - sum(path.stat().st_size for path in other)


def require_planned(planned: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
    """What `tunejob plan --json` said before a run is what the run's statistics say after it."""
    rows, steps, data, training = planned["rows"], planned["training"], stats["data"], stats["training"]
    assert rows["read_rows"] == data["train"]["read_rows"]
    for name in ("rows", "sequences", "tokens", "trained_tokens", "truncated_rows", "dropped_rows"):
        assert rows[name] == dict.fromkeys(("expected", "low", "high"), data["train"][name]), name
    held_out = data["held_out"]["rows"] if data["held_out"] else 0
    assert (rows["held_out_rows"]["expected"], rows["held_out_words"]) == (held_out, data["held_out_words"])
    assert (rows["longest_tokens"], rows["histogram"]) == (data["train"]["longest_tokens"], data["train"]["lengths"])
    assert steps["steps"] == training["steps"]
    assert steps["tokens_per_step"] * steps["steps"] == pytest.approx(training["tokens"], rel=0.001)


def document(path: Path) -> dict[str, Any]:
    return strict(path.read_text("utf-8"))


def strict(text: str) -> dict[str, Any]:
    """JSON as other languages read it: without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON: {text}")

    return json.loads(text, parse_constant=refuse)


# What differs from run to run: times, and room
MEASURED = ("second", "minute", "bytes", "rate", "eta", "memory", "phases")


def steady(value: Any) -> Any:
    """`value` without what is measured."""
    if isinstance(value, dict):
        return {
            key: steady(inner)
            for key, inner in value.items()
            if key != "time" and not any(word in key for word in MEASURED)
        }
    return [steady(inner) for inner in value] if isinstance(value, list) else value


STATS_KEYS = {
    "version",
    "run_id",
    "status",
    "failure",
    "wall_seconds",
    "device",
    "memory",
    "phases",
    "data",
    "training",
    "packages",
}


def valid_stats(path: Path) -> dict[str, Any]:
    """The `stats.json` there, once it has passed its schema."""
    stats = document(path)
    assert stats.keys() >= STATS_KEYS
    if (ROOT / "schemas" / "stats.schema.json").is_file():
        StrictValidator(load_schema("stats")).validate(stats)
    return stats


def listing(folder: Path) -> set[tuple[str, int, int]]:
    """Every file with its size and time of last change: equal before and after if nothing was written."""
    stats = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    return {(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats}


def write_spec(path: Path, document: Mapping[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), "utf-8")
    return str(path)


def reloaded(base: Path, output: Path, precision: str, scratch: Path) -> dict[str, Any]:
    """What `tests.flow.reload` says, in a process of its own."""
    arguments = [str(base), str(output), precision]
    code, said, complaint = run_forked(
        "tests.flow.reload:main", arguments, scratch, environment(scratch), LIMIT_SECONDS
    )
    assert code == 0, complaint
    return json.loads(said.splitlines()[-1])
