"""What a process asks and is answered comes back as it was."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from job.data.worker import wire
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


@dataclass(frozen=True)
class Several:
    parts: tuple[Part | Asked, ...]


PART = Part("é", 0.1 + 0.2)
WHOLE = Asked(
    Path("/a/b"),
    (PART, Part("", 1e-300)),
    {"x": PART},
    Path("c"),
    ("q", "k"),
    True,
    {"n": [1, None, {"y": "/z"}]},
    [[1], []],
)
BARE = Asked(Path("a"), (), {}, None, "all-linear", "a", {}, [])


@pytest.mark.parametrize("record", [WHOLE, BARE], ids=["whole", "bare"])
def test_a_record_comes_back_equal(record: Asked) -> None:
    assert build(Asked, json.loads(encode(record))) == record


@pytest.mark.parametrize("name", [field.name for field in fields(Asked)])
def test_a_missing_field_is_refused(name: str) -> None:
    document = json.loads(encode(WHOLE))
    del document[name]
    with pytest.raises(TypeError, match=name):
        build(Asked, document)


def test_a_field_that_the_record_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match="more"):
        build(Part, {"name": "a", "weight": 1.0, "more": 1})


def test_what_is_absent_is_none_only_where_that_may_be() -> None:
    document = json.loads(encode(BARE))
    assert document.pop("other", 1) is None
    assert build(Asked, document, absent_is_none=True) == BARE
    del document["folder"]
    with pytest.raises(TypeError, match="folder"):
        build(Asked, document, absent_is_none=True)


def test_of_several_records_the_one_with_these_fields_is_taken() -> None:
    for record in (Several((PART, BARE)), Several((BARE, PART, PART))):
        assert build(Several, json.loads(encode(record))) == record
    with pytest.raises(TypeError, match="no record has the fields name"):
        build(Several, {"parts": [{"name": "a"}]})


JOB = wire.Job("{{ messages }}", {"eos_token": "</s>"}, ["</s>"], "responses", 64, [1], None)
SOURCE = wire.Source("/data/train/0", "messages", {"messages": "chat"}, {}, "\n\n")


@pytest.mark.parametrize("record", [
    wire.Request("turn_end", JOB), wire.Request("prompts", JOB, prompts=("a", "b")),
    wire.Request("renderings", JOB, conversations=([[{"role": "user", "content": "a"}], None, True],)),
    wire.Reply(), wire.Reply(stage="/data/chat_template"),
    wire.Reply(sequences=[[0, 1, 1, False, 7]], remarks={"control": 2}),
])  # fmt: skip
def test_what_passes_between_the_job_and_its_data_workers_comes_back_equal(record: Any) -> None:
    message = wire.pack(wire.dump(record), b"body")
    header, body = wire.unpack(io.BytesIO(message).read) or (None, b"")
    assert (build(type(record), header), body) == (record, b"body")
    with pytest.raises(TypeError, match="another"):
        build(type(record), header | {"another": 1})


def test_rows_that_are_json_already_are_put_into_their_request() -> None:
    rows = [{"chat": [{"role": "user", "content": "[]}"}]}, {"chat": None}]
    raw = wire.with_rows(wire.Request("rows", JOB, source=SOURCE), json.dumps(rows).encode())
    assert build(wire.Request, json.loads(raw)) == wire.Request("rows", JOB, source=SOURCE, rows=tuple(rows))


def test_what_would_not_come_back_is_refused() -> None:
    with pytest.raises(TypeError, match="no value of a record"):
        encode({"x": {1, 2}})


def test_a_child_is_asked_and_answers_with_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typed_child.py").write_text(HANDLER)
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    answered = run_child("typed_child", WHOLE, tmp_path / "work", "a part", answer=Answered)
    assert answered == Answered(Path("/a/b/made"), [PART.weight * 2, 2e-300])
