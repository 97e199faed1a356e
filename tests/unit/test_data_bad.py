"""Bad data sets: each is refused with its exit code, its place in the spec, and the row and reason in words."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from job.errors import InputError
from tests.data_rows import Row, byte_tokenizer_dir, prepare, turns

GOOD = {"messages": turns("a", "b")}
SOURCE = "/data/train/0/source"
COLUMNS = "/data/train/0/columns"


@dataclass(frozen=True)
class Bad:
    """A file's bytes or rows, how it is declared, and what the refusal must say."""

    content: bytes | list[Any]
    says: str
    kind: str = "messages"
    pointer: str = SOURCE
    name: str = "rows.jsonl"
    source: Row = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)


def message(**fields: Any) -> list[Row]:
    return [GOOD, {"messages": [{"role": "user", "content": "q"}, fields]}]


def sharegpt(*pairs: tuple[Any, Any]) -> list[Row]:
    return [{"conversations": [{"from": speaker, "value": value} for speaker, value in pairs]}]


def templated(assistant: str, user: str = "{{ q }}") -> dict[str, Any]:
    return {"template": {"user": user, "assistant": assistant}}


UNSUPPORTED = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}{{ raise_exception('no such talk') }}"}
HIDING = {"chat_template": "{{ messages | length }}{% if add_generation_prompt %}x{% endif %}"}

CASES = {
    "empty file": Bad(b"", "no rows (found 0 rows in 1 files)"),
    "blank lines only": Bad(b"\n\n  \n", "no rows"),
    "empty array": Bad(b"[]", "no rows", name="rows.json"),
    "slice beyond the rows": Bad([GOOD], "test[5:] leaves none", source={"split": "test[5:]"}),
    "broken JSON line": Bad(b'{"messages": []}\n{"messages": [}\n', "rows.jsonl line 2: not JSON"),
    "broken JSON array": Bad(b'[{"messages": []}, {"messages": [}]', "in row 2", name="rows.json"),
    "array cut short": Bad(b'[{"messages": []}, {"messages"', "the array breaks off", name="rows.json"),
    "text after the array": Bad(b'[{"messages": []}] x', "text after the array", name="rows.json"),
    "rows are no objects": Bad(b"[1]\n", "line 1 must be a JSON object (found list)"),
    "array of no objects": Bad(b"[1, 2]", "row 1 must be a JSON object (found int)", name="rows.json"),
    "not UTF-8": Bad(b'{"messages": []}\n{"text": "\xff"}\n', "line 2: not UTF-8 (found byte 0xff"),
    "damaged gzip": Bad(gzip.compress(b"{}\n" * 99)[:-9], "the gzip file is damaged or cut short", name="rows.jsonl.gz"),
    "not gzip": Bad(b"{}\n", "the gzip file is damaged or cut short", name="rows.jsonl.gz"),
    "unknown kind of file": Bad(b"x", "not a kind of file the job reads", name="rows.xlsx"),
    "not Parquet": Bad(b"PAR1 nothing", "not a whole Parquet file", name="rows.parquet"),
    "CSV row too short": Bad(b"instruction,output\na,b\nc\n", "line 3: the row does not have 2 fields", "alpaca", name="rows.csv"),
    "CSV header twice": Bad(b"text,text\na,b\n", "a different name for each column", "text", name="rows.csv"),
    "row too long": Bad(b'{"text": "' + b"x" * (5 << 20) + b'"}', "line 1: the row is too long", "text"),
    "nested too deeply": Bad(b'{"text": ' + b"[" * 100_000 + b"}", "line 1: nested too deeply", "text"),
    "wrong format": Bad([GOOD], "(found messages); expected conversations. The columns fit format messages", "sharegpt", COLUMNS),
    "near column": Bad([{"instructions": "a", "output": "b"}], "Nearest: instruction is near instructions", "alpaca", COLUMNS),
    "renamed column missing": Bad([{"text": "a"}], "expected content", "text", COLUMNS, source={"columns": {"text": "content"}}),
    "later row without the column": Bad([GOOD, {"other": 1}], "rows.jsonl row 2: column messages is missing; the row has other"),
    "unknown role": Bad(message(role="narrator", content="x"), "row 2: message 2 has the unknown role 'narrator'"),
    "no role": Bad(message(content="x"), "row 2: message 2 must be an object with role and content"),
    "null content": Bad(message(role="assistant", content=None), "row 2: message 2: content must be text, not null"),
    "number content": Bad(message(role="assistant", content=7), "row 2: message 2: content must be text, not int"),
    "image part": Bad(message(role="user", content=[{"type": "image_url"}]), "content part of type 'image_url'"),
    "messages no list": Bad([{"messages": {"role": "user"}}], "row 1: messages must be a list, not dict"),
    "messages no JSON": Bad([{"messages": "hello"}], "row 1: messages is text but not JSON"),
    "tool call without a name": Bad(message(role="assistant", content=None, tool_calls=[{"id": "1"}]), "needs a function with a name"),
    "tool calls left out by the template": Bad(
        message(role="assistant", content=None, tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]), "leaves tool calls out"
    ),
    "two system prompts": Bad(
        [{"system": "a", "messages": [{"role": "system", "content": "b"}, *turns("c", "d")]}], "row 1: a system prompt is in"
    ),
    "unknown speaker": Bad(sharegpt(("human", "a"), ("alien", "b")), "turn 2 has the unknown speaker 'alien'", "sharegpt"),
    "speaker's null": Bad(sharegpt(("human", "a"), ("gpt", None)), "turn 2: the value must be text, not null", "sharegpt"),
    "function call no JSON": Bad(sharegpt(("human", "a"), ("function_call", "f(x)")), "the function call is text but not JSON", "sharegpt"),
    "empty instruction": Bad([{"instruction": " ", "output": "b"}], "instruction and input are empty", "alpaca"),
    "null output": Bad([{"instruction": "a", "output": None}], "row 1: output must be text, not null", "alpaca"),
    "mixed prompt and completion": Bad([{"prompt": "a", "completion": turns("b")}], "not str and list", "prompt_completion"),
    "null text": Bad([{"text": None}], "row 1: text must be text, not null", "text"),
    "lone surrogate": Bad(b'{"text": "a\\ud800"}\n', "row 1: a lone surrogate '\\ud800' is no character", "text"),
    "no assistant anywhere": Bad([{"messages": turns("a")}] * 3, "no row has a token to learn", pointer="/data/train"),
    "empty answers": Bad([{"messages": turns("a", " ")}], "nothing to learn in it", pointer="/data/train"),
    "zero turns": Bad(sharegpt(), "no assistant turn", "sharegpt", "/data/train"),
    "all answers cut off": Bad([{"messages": turns("word " * 99, "b")}], "max_seq_length", pointer="/data/train", spec={"length": 32}),
    "too many rows without an answer": Bad(
        [GOOD, {"messages": turns("a")}], "found 1 of 2 rows); expected at most 0.05", pointer="/data/max_untrained_fraction"
    ),
    "everything held out": Bad([GOOD, GOOD], "no rows are left to train on", pointer="/data/held_out/rows", spec={"held_out": {"rows": 2}}),
    "only copies left": Bad([GOOD, GOOD], "copies of held-out rows", pointer="/data/held_out", spec={"held_out": {"rows": 1}}),
    "weights that round to nothing": Bad([GOOD], "no rows are left", pointer="/data/train/0/weight", source={"weight": 0.1}),
    "undefined column": Bad(
        [{"q": "a", "c": "b"}], "row 1: 'answer' is undefined; its columns are q, c", "template", "/data/train/0/template/assistant",
        source=templated("{{ answer }}"),
    ),
    "row template no Jinja": Bad([{"q": "a"}], "not Jinja", "template", "/data/train/0/template/assistant", source=templated("{% if %}")),
    "row template fails": Bad([{"q": 1}], "row 1: Type", "template", "/data/train/0/template/user", source=templated("a", "{{ q + '' }}")),
    "chat template no Jinja": Bad([GOOD], "not Jinja", pointer="/data/chat_template", spec={"chat_template": "{% for %}"}),
    "chat template raises": Bad([GOOD], "row 1: TemplateError: no such talk", pointer="/data/chat_template", spec=UNSUPPORTED),
    "chat template hides the answer": Bad([GOOD], "hides where the answer", pointer="/data/chat_template", spec=HIDING),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_data_set(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = tmp_path / case.name
    content = case.content
    path.write_bytes(content if isinstance(content, bytes) else "".join(json.dumps(row) + "\n" for row in content).encode())
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, path, case.kind, byte_tokenizer_dir(), source=case.source, **case.spec)
    assert caught.value.exit_code == 11
    assert caught.value.faults[0].where == case.pointer
    assert case.says in str(caught.value.faults[0])


def test_ten_faulty_rows_are_named_and_counted(tmp_path: Path) -> None:
    rows = [GOOD, *[{"messages": [*turns("a", "b"), {"role": "nobody", "content": str(i)}]} for i in range(3)], GOOD]
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, rows, "messages", byte_tokenizer_dir())
    places = [fault.message.partition(":")[0] for fault in caught.value.faults]
    assert places == ["rows.jsonl row 2", "rows.jsonl row 3", "rows.jsonl row 4", "3 rows cannot be used"]
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, rows[1:2] * 40, "messages", byte_tokenizer_dir())
    assert len(caught.value.faults) == 11


def test_a_model_without_a_template_needs_one_chosen(tmp_path: Path) -> None:
    from job.data.tokenizer import load_tokenizer
    from tests.smollm2 import model_dir

    tokenizer = load_tokenizer(model_dir())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="no chat template of its own") as caught:
        prepare(tmp_path, [GOOD], "messages", tmp_path / "base")
    assert caught.value.faults[0].where == "/data/chat_template"
    assert caught.value.faults[0].expected.startswith("one of chatml, qwen, llama-3")
    assert prepare(tmp_path, [GOOD], "messages", tmp_path / "base", chat_template="chatml").tokenizer.eos_token == "<|im_end|>"


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, [GOOD], "messages", tmp_path / "empty")
    assert caught.value.faults[0].where == "/model/source"
