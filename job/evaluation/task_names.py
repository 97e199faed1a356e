"""Names of lm-eval's tasks, groups and tags, as its files say them: its own index of all takes seconds to build."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from job.errors import InputError

NAMED = re.compile(rb"^[\"']?(task|group|tag)[\"']?[ \t]*:(.*(?:\n[ \t]*-[ \t].*)*)", re.MULTILINE)
BESIDE = re.compile(rb"^[ \t]*-[ \t]|#.*$", re.MULTILINE)  # what stands in a list beside its names
WORD = re.compile(rb"[^\s\[\],\"']+")
ENDINGS = ("", ".yaml", ".yml")  # of tasks; the first of files that several of them include


@cache
def task_names() -> dict[str, set[Path]]:
    """The folders in which a task has each name; none for groups and tags."""
    found: dict[str, set[Path]] = {}
    for path in _files():
        for key, said in NAMED.findall(path.read_bytes()):
            if key == b"task" and b"\n" in said:
                continue  # what a group is made of
            for word in WORD.findall(BESIDE.sub(b"", said)):
                folders = found.setdefault(word.decode("utf-8", "replace"), set())
                if key == b"task":
                    folders.add(path.parent)
    return found


def require_known(name: str, where: str, known: Collection[str]) -> None:
    """Raises `InputError` for a task that is none of these, with those of like names."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.6)
        hint = f"Did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks lists what it knows"
        raise InputError("lm-eval knows no such task", where=where, found=ascii(name), hint=hint)


def _files() -> Iterator[Path]:
    """Found without an import of lm-eval, which takes seconds as well."""
    spec = find_spec("lm_eval")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for folder, _, names in os.walk(Path(place) / "tasks"):
            yield from (Path(folder, name) for name in names if os.path.splitext(name)[1] in ENDINGS)
