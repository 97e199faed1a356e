"""The measurements of this folder one after the other, for a GPU that is rented by the minute.

    python -m tests.gpu.proofs FOLDER [--rows ROWS] [NAME…]     needs an NVIDIA GPU; without a name: all, in this order
    python -m tests.gpu.proofs --list

ROWS: a folder with preference_llmfs.json and alpaca_en_demo.json; what needs it is left out without. Each has a time
limit, so that one that stands still does not cost the others; what it has printed until then is in FOLDER/NAME.log.
Where meaning counts and time does not, two are on the card at once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY

PACKED = {"shape": "8b", "precision": "4bit", "backend": "unsloth", "checkpointing": "unsloth", "steps": 5,
          "rows": 8, "passes": 2, "tokens": 2048, "packing": True, "compute": "auto"}  # fmt: skip
STOCK = {"kept": 0, "compute": "stock"}
RAGGED = {"packing": False, "ragged": True, "kept": 32}
ALONE = {"packing": False, "rows": 1, "passes": 1, "steps": 3}
LONG = {8192: (138, 24), 32_768: (138, 80, 24), 65_536: (138, 80)}  # tokens of a row, GiB that may be used


@dataclass(frozen=True)
class Proof:
    """A module of the tests with its arguments: {folder} of all, {own} of this one, {rows}. `cases`: its standard
    input. `shape` of the model of random weights that it finds in its own folder.
    """

    name: str
    limit_seconds: int
    arguments: Sequence[str]
    cases: Sequence[dict[str, Any]] = ()
    shape: str | None = None

    @property
    def needs_rows(self) -> bool:
        return "{rows}" in " ".join(self.arguments)


def limited(shape: str, limits_gib: Sequence[int]) -> dict[str, Any]:
    """Stock, what is chosen with all of the memory and where its time goes, and for each limit of it, stock again."""
    chosen = [{"usable_gib": limit} for limit in limits_gib]
    return PACKED | {"shape": shape, "variants": [STOCK, {"usable_gib": 138, "profile": True}, *chosen, STOCK]}


def ragged() -> dict[str, Any]:
    """Rows that are not packed, padded and one behind the other."""
    computes, joined = ("stock", "auto"), (False, True)
    return PACKED | {
        "variants": [RAGGED | {"compute": how, "padding_free": free} for how in computes for free in joined]
    }


def long() -> dict[str, Any]:
    """One long row a step: the engine's own recomputation, and what is chosen for each limit of the memory."""
    ways = [(tokens, [STOCK, *({"usable_gib": limit} for limit in limits)]) for tokens, limits in LONG.items()]
    return PACKED | ALONE | {"variants": [way | {"tokens": tokens} for tokens, each in ways for way in each]}


IN_TURN: tuple[tuple[Proof, ...], ...] = (
    (Proof("grid", 280, ("gpu.grid", "{folder}", "1"), (limited("8b", (80, 24, 16, 10)), ragged())),),
    (Proof("computes", 240, ("gpu.computes", "{own}", "{rows}/alpaca_en_demo.json")),
     Proof("matrix", 240, ("gpu.matrix", "{own}", "demo", "kto", "peft-dpo", "8bit", "fp8"))),
    (Proof("pairs", 300, ("gpu.pairs", "{own}", "--rows", "{rows}", "--at-once", "5")),),
    (Proof("dpo-1b", 400, ("gpu.dpo_bench", "1b", "8", "{own}"), shape="1b"),),
    (Proof("bench-8b", 560, ("gpu.bench", "8b", "7", "{own}"), shape="8b"),),
    (Proof("dpo-8b", 500, ("gpu.dpo_bench", "8b", "5", "{own}"), shape="8b"),),
    (Proof("choices", 300, ("gpu.choices", "{own}")),),
    (Proof("long", 300, ("gpu.grid", "{folder}", "1"), (long(),)),),
    (Proof("grid-1b", 120, ("gpu.grid", "{folder}", "1"), (limited("1b", (80, 16, 4)),)),),
    (Proof("rows", 120, ("speed",)),),
    (Proof("attention", 60, ("gpu.attention",)),),
    (Proof("exports", 400, ("gpu.export_bench", "8b", "{own}"), shape="8b"),),
    (Proof("answers", 200, ("gpu.answers", "1b", "{folder}")),),
)  # fmt: skip


def run(proof: Proof, folder: Path, rows: Path | None) -> None:
    """Prints how it ended and how long it took."""
    own = folder / proof.name
    own.mkdir(exist_ok=True)
    if proof.shape and not (own / "model").exists():
        (own / "model").symlink_to(made(proof.shape, folder))
    module, *arguments = (argument.format(folder=folder, own=own, rows=rows) for argument in proof.arguments)
    command = [sys.executable, "-m", f"tests.{module}", *arguments]
    started = time.monotonic()
    with (folder / f"{proof.name}.log").open("w") as log:
        child = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                                 text=True, start_new_session=True)  # fmt: skip
        try:
            child.communicate("".join(json.dumps(case) + "\n" for case in proof.cases), timeout=proof.limit_seconds)
            ended = f"exit {child.returncode}"
        except subprocess.TimeoutExpired:
            ended = "at its limit"
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # and all that it has started
        child.wait()
    print(json.dumps({"proof": proof.name, "ended": ended, "seconds": round(time.monotonic() - started)}), flush=True)


def made(shape: str, folder: Path) -> Path:
    """The model of random weights, in a process of its own, which leaves the card as it was."""
    if not (folder / shape / "config.json").exists():
        subprocess.run([sys.executable, "-m", "tests.gpu.grid", str(folder), shape], cwd=REPOSITORY, check=True)
    return folder / shape


def chosen(names: Sequence[str], rows: Path | None) -> Iterator[list[Proof]]:
    for together in IN_TURN:
        wanted = [proof for proof in together if not names or proof.name in names]
        if found := [proof for proof in wanted if rows or not proof.needs_rows]:
            yield found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    if asked.list or asked.folder is None:
        for proof in (proof for together in IN_TURN for proof in together):
            print(f"{proof.name:10} up to {proof.limit_seconds:3} s  {' '.join(proof.arguments)}")
        return
    asked.folder = asked.folder.absolute()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for together in chosen(asked.names, asked.rows):
        with ThreadPoolExecutor(len(together)) as pool:
            list(pool.map(lambda proof: run(proof, asked.folder, asked.rows), together))


if __name__ == "__main__":
    main()
