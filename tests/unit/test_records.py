"""What a process asks and is answered comes back as it was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from job.host.child import run_child
from job.host.records import build, encode

HANDLER = """
from __future__ import annotations
from tests.unit.test_records import Asked, Answered

def handle(request: Asked) -> Answered:
    return Answered(request.folder / "made", [part.weight * 2 for part in request.parts])

if __name__ == "__main__":
    from job.host.child import serve
    serve(handle)
"""


@dataclass(frozen=True)
class Part:
    name: str
    weight: float


@dataclass(frozen=True)
class Asked:
    folder: Path
    parts: tuple[Part, ...]
    by_name: dict[str, Part]
    other: Path | None
    targets: str | tuple[str, ...]
    kind: Literal["a"] | bool
    facts: dict[str, Any]
    nested: list[list[int]]


@dataclass(frozen=True)
class Answered:
    made: Path
    doubled: list[float]


PART = Part("é", 0.1 + 0.2)
WHOLE = Asked(Path("/a/b"), (PART, Part("", 1e-300)), {"x": PART}, Path("c"), ("q", "k"), True, {"n": [1, None, {"y": "/z"}]}, [[1], []])
BARE = Asked(Path("a"), (), {}, None, "all-linear", "a", {}, [])


@pytest.mark.parametrize("record", [WHOLE, BARE], ids=["whole", "bare"])
def test_a_record_comes_back_equal(record: Asked) -> None:
    assert build(Asked, json.loads(encode(record))) == record


def test_what_would_not_come_back_is_refused() -> None:
    with pytest.raises(TypeError, match="no value of a record"):
        encode({"x": {1, 2}})


def test_a_child_is_asked_and_answers_with_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typed_child.py").write_text(HANDLER)
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    answered = run_child("typed_child", WHOLE, tmp_path / "work", "a part", answer=Answered)
    assert answered == Answered(Path("/a/b/made"), [PART.weight * 2, 2e-300])
