"""Bad data sets: each is refused with its exit code, its place in the spec, and the row and reason in words."""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from job.data.read import count_rows
from job.data.tokenizer import MAX_TOKEN_BYTES, load_tokenizer
from job.errors import InputError
from tests.data_rows import Row, byte_tokenizer_dir, prepare, turns
from tests.tiny import tiny_dir

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


UNSUPPORTED = {
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}{{ raise_exception('no such talk') }}"
}
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
    "rows are not objects": Bad(b"[1]\n", "line 1 must be a JSON object (found list)"),
    "array of no objects": Bad(b"[1, 2]", "row 1 must be a JSON object (found int)", name="rows.json"),
    "not UTF-8": Bad(b'{"messages": []}\n{"text": "\xff"}\n', "line 2: not UTF-8 (found byte 0xff"),
    "damaged gzip": Bad(gzip.compress(b"{}\n" * 99)[:-9], "the gzip file is damaged or cut short",
                        name="rows.jsonl.gz"),
    "not gzip": Bad(b"{}\n", "the gzip file is damaged or cut short", name="rows.jsonl.gz"),
    "unknown kind of file": Bad(b"x", "not a kind of file the job reads", name="rows.xlsx"),
    "not Parquet": Bad(b"PAR1 nothing", "not a whole Parquet file", name="rows.parquet"),
    "CSV row too short": Bad(b"instruction,output\na,b\nc\n", "line 3: the row does not have 2 fields", "alpaca",
                             name="rows.csv"),
    "CSV header of a million names": Bad(b",".join([b"name"] * 800_000) + b"\n", "(found name, name, name", "text",
                                         name="rows.csv"),
    "row of a thousand columns": Bad([{f"c{i}": 1 for i in range(1000)}], "(found c0, c1,", "text", COLUMNS),
    "role of a million letters": Bad(message(role="x" * 1_000_000), "row 2: message 2 has the unknown role 'xxx"),
    "CSV header twice": Bad(b"text,text\na,b\n", "a different name for each column", "text", name="rows.csv"),
    "row too long": Bad(b'{"text": "' + b"x" * (5 << 20) + b'"}', "line 1: the row is too long", "text"),
    "nested too deeply": Bad(b'{"text": ' + b"[" * 100_000 + b"}", "line 1: nested too deeply", "text"),
    "wrong format": Bad([GOOD], "(found messages); expected conversations. The columns fit format messages",
                        "sharegpt", COLUMNS),
    "near column": Bad(
        [{"instructions": "a", "output": "b"}], 'Write "columns": {"instruction": "instructions"}', "alpaca", COLUMNS
    ),
    "other names": Bad(
        [{"Question": "a", "answer": "b"}],
        'Write "columns": {"prompt": "Question", "completion": "answer"}', "prompt_completion", COLUMNS
    ),
    "no such names": Bad([{"left": "a", "right": "b"}], "Name the source's columns in columns",
                         "prompt_completion", COLUMNS),
    "renamed column missing": Bad([{"text": "a"}], "expected content", "text", COLUMNS,
                                  source={"columns": {"text": "content"}}),
    "later row without the column": Bad([GOOD, {"other": 1}],
                                        "rows.jsonl row 2: column messages is missing; the row has other"),
    "unknown role": Bad(message(role="narrator", content="x"), "row 2: message 2 has the unknown role 'narrator'"),
    "no role": Bad(message(content="x"), "row 2: message 2 must be an object with role and content"),
    "null content": Bad(message(role="assistant", content=None), "row 2: message 2: content must be text, not null"),
    "number content": Bad(message(role="assistant", content=7), "row 2: message 2: content must be text, not int"),
    "image part": Bad(message(role="user", content=[{"type": "image_url"}]), "content part of type 'image_url'"),
    "messages no list": Bad([{"messages": {"role": "user"}}], "row 1: messages must be a list, not dict"),
    "messages no JSON": Bad([{"messages": "hello"}], "row 1: messages is text but not JSON"),
    "tool call without a name": Bad(message(role="assistant", content=None, tool_calls=[{"id": "1"}]),
                                    "needs a function with a name"),
    "tool calls left out by the template": Bad(
        message(role="assistant", content=None, tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]),
        "leaves tool calls out"
    ),
    "two system prompts": Bad(
        [{"system": "a", "messages": [{"role": "system", "content": "b"}, *turns("c", "d")]}],
        "row 1: a system prompt is in"
    ),
    "unknown speaker": Bad(sharegpt(("human", "a"), ("alien", "b")),
                           "turn 2 has the unknown speaker 'alien'", "sharegpt"),
    "speaker's null": Bad(sharegpt(("human", "a"), ("gpt", None)),
                          "turn 2: the value must be text, not null", "sharegpt"),
    "function call no JSON": Bad(sharegpt(("human", "a"), ("function_call", "f(x)")),
                                 "the function call is text but not JSON", "sharegpt"),
    "empty instruction": Bad([{"instruction": " ", "output": "b"}], "instruction and input are empty", "alpaca"),
    "null output": Bad([{"instruction": "a", "output": None}], "row 1: output must be text, not null", "alpaca"),
    "mixed prompt and completion": Bad([{"prompt": "a", "completion": turns("b")}], "not str and list",
                                       "prompt_completion"),
    "null text": Bad([{"text": None}], "row 1: text must be text, not null", "text"),
    "lone surrogate": Bad(b'{"text": "a\\ud800"}\n', "row 1: a lone surrogate '\\ud800' is not a character", "text"),
    "no assistant anywhere": Bad([{"messages": turns("a")}] * 3, "no row has a token to learn", pointer="/data/train"),
    "empty answers": Bad([{"messages": turns("a", " ")}], "rows.jsonl row 1: the answer is empty",
                         pointer="/data/train"),
    "an empty answer, beyond the length": Bad(
        [{"messages": turns("word " * 99, "")}], "row 1: the answer is empty",
        pointer="/data/train", spec={"length": 32}
    ),
    "an empty cell": Bad(
        b'instruction,output\n"a\nb",b\n\nc,\n',
        "rows.csv line 5: the answer is empty (found 1 of 2 rows); expected at most 0.05 of them. Complete these rows",
        "alpaca", "/data/max_untrained_fraction", "rows.csv",
    ),
    "an empty completion": Bad(
        b"prompt;completion\na;b\nc;\n", "rows.csv line 3: the answer is empty", "prompt_completion",
        "/data/max_untrained_fraction", "rows.csv"
    ),
    "a bad cell after a long one": Bad(
        b'instruction,output\r\n"a\r\nb",b\r\n"",c\r\n',
        "rows.csv line 4: instruction and input are empty", "alpaca", name="rows.csv"
    ),
    "a bad row after a blank line": Bad(b'{"text": "a"}\n\n{"text": null}\n',
                                        "rows.jsonl row 3: text must be text", "text"),
    "zero turns": Bad(sharegpt(), "no assistant turn", "sharegpt", "/data/train"),
    "all answers cut off": Bad(
        [{"messages": turns("word " * 99, "b")}, {"messages": turns("word " * 9, "b")}],
        "model.max_seq_length is 32; 517 would hold each of these rows", pointer="/data/train", spec={"length": 32},
    ),
    "too many answers cut off": Bad(
        [{"messages": turns("word " * 9, "b")}, GOOD],
        "expected at most 0.05 of them. model.max_seq_length is 64; 67 would hold",
        pointer="/data/max_untrained_fraction", spec={"length": 64},
    ),
    "all answers marked": Bad(
        message(role="assistant", content="x", weight=0)[1:],
        "row 1: it is marked not to be learned", pointer="/data/train"
    ),
    "all rows marked": Bad([GOOD | {"train": False}], "row 1: it is marked not to be learned", pointer="/data/train"),
    "a mark for each message": Bad([GOOD | {"loss_mask": [0, 1]}],
                                   "row 1: the row's loss_mask is a list; weight or train in each"),
    "marks of a row that contradict": Bad([GOOD | {"train": False, "weight": 1}],
                                          "row 1: the row: weight and train contradict"),
    "bad row under a template": Bad(
        [{"q": "a", "label": False}], "row 1: label is False: preference",
        "template", source=templated("{{ q }}", "{{ q }}")
    ),
    "null in a row template": Bad(
        b"q,a\nx,NaN\n", "rows.csv line 2: TemplateError: null would be written as None; write {{ column or",
        "template", "/data/train/0/template/assistant", "rows.csv", templated("{{ a }}"),
    ),
    "key given twice": Bad(b'{"text": "a"}\n{"text": "a", "text": "b"}\n',
                           "rows.jsonl line 2: the key 'text' is given twice", "text"),
    "key given twice, within": Bad(
        b'[{"text": "a"}, {"text": "b", "m": {"a": 1, "a": 1}}]',
        "row 2: the key 'a' is given twice", "text", name="rows.json"
    ),
    "key given twice, whole": Bad(b'{"rows": [\n{"text": "a", "text": "b"}]}', "the key 'text' is given twice", "text",
                                  name="rows.json"),
    "comma after the last row": Bad(b'[{"text": "a"}, ]', "a comma after the last row (found after row 1", "text",
                                    name="rows.json"),
    "comma twice": Bad(b'[{"text": "a"},, {"text": "b"}]', "malformed (found in row 2", "text", name="rows.json"),
    "comma first": Bad(b'[, {"text": "a"}]', "malformed (found in row 1", "text", name="rows.json"),
    "no comma": Bad(b'[{"text": "a"} {"text": "b"}]', "malformed (found after row 1", "text", name="rows.json"),
    "two arrays": Bad(b'[{"text": "a"}]\n[{"text": "b"}]', "text after the array", "text", name="rows.json"),
    "NaN within": Bad(
        b'{"messages": [{"role": "user", "content": "a", "x": NaN}]}', "row 1: messages holds NaN or an infinite number"
    ),
    "infinite": Bad(b'[{"text": 1e999}]', "row 1: text holds NaN or an infinite number", "text", name="rows.json"),
    "NaN in arguments": Bad(
        message(role="assistant", tool_calls=[{"name": "f", "arguments": '{"a": NaN}'}]),
        "row 2: message 2: arguments of f: NaN is not a number in JSON",
    ),
    "infinity in arguments": Bad(
        message(role="assistant", tool_calls=[{"name": "f", "arguments": '{"a": -1e999}'}]),
        "row 2: message 2: arguments of f: the number -1e999 is too large",
    ),
    "key twice in arguments": Bad(
        message(role="assistant", tool_calls=[{"name": "f", "arguments": '{"a": 1, "a": 2}'}]),
        "row 2: message 2: arguments of f: the key 'a' is given twice",
    ),
    "key twice in messages": Bad([{"messages": '[{"role": "user", "role": "user"}]'}],
                                 "row 1: messages: the key 'role' is given twice"),
    "reasoning alone": Bad(
        message(role="assistant", content=None, reasoning_content="because"),
        "row 2: the answer in message 2 is reasoning alone, which the chat template leaves out",
    ),
    "a tool that is not a function": Bad(
        [GOOD | {"tools": [{"type": "retrieval"}]}], "row 1: tool 1 is of type 'retrieval'; only functions can be used"
    ),
    "a tool without a name": Bad([GOOD | {"tools": [{"function": {"name": " "}}]}], "row 1: tool 1: each tool must be"),
    "tools and other functions": Bad(
        [GOOD | {"tools": [{"name": "f"}], "functions": [{"name": "g"}]}],
        "row 1: tools and functions are one thing, and differ"
    ),
    "weight beyond": Bad(message(role="assistant", content="x", weight=1.5),
                          "row 2: message 2: weight must be 0, or from"),
    "a bad KTO row": Bad([{"prompt": "a", "completion": "b", "label": False}], "label is False: preference",
                         "prompt_completion"),
    "tools nested too deeply": Bad(
        [{"messages": turns("a", "b"), "tools": "[" * 5000 + "]" * 5000}], "row 1: tools is text but not JSON"
    ),
    "CSV of one record without end": Bad(b'text\n"' + b"x\n" * (3 << 20), "the row is too long", "text",
                                         name="rows.csv"),
    "CSV row too long for its header": Bad(b"a;b\n1;2\n1;2;3\n", "line 3: the row does not have 2 fields", "text",
                                           name="rows.csv"),
    "too many rows without an answer": Bad(
        [GOOD, {"messages": turns("a")}], "found 1 of 2 rows); expected at most 0.05",
        pointer="/data/max_untrained_fraction"
    ),
    "a spreadsheet under another name": Bad(b"PK\x03\x04\xff", "It is a zip archive or an Excel file", "text",
                                            name="rows.csv"),
    "an old spreadsheet under another name": Bad(
        bytes.fromhex("d0cf11e0a1b11ae1"),
        "It is a file of an older Excel or Word: export its rows as CSV", "text", name="rows.csv"
    ),
    "rows under keys": Bad(
        b'{"0": {"q": "a", "a": "b"}, "1": {"q": "c", "a": "d"}}',
        "looks like many (found 2 keys, each with an object of the same keys)", "alpaca", name="rows.json",
    ),
    "columns of a table": Bad(
        b'{"question": ["a", "b"], "answer": ["c", "d"]}',
        "(found 2 keys, each with a list of 2); expected [{", "alpaca", name="rows.json"
    ),
    "answers under questions": Bad(
        b'{"Where do we meet today?": "Here.", "When?": "At 7."}',
        "Write its rows as a list", "alpaca", name="rows.json"
    ),
    "rows as Python writes them": Bad(b"{'text': 'a'}\n", "column 2). JSON has double quotes around texts", "text"),
    "a row over several lines": Bad(b'{\n "text": "a"\n}\n', "Each line is a row by itself", "text"),
    "CSV text with a comma": Bad(b"q,a\nwhere, when,here\n", "(found 3). A text with ',' in it needs quotes", "text",
                                 name="rows.csv"),
    "CSV text with a quote": Bad(b'q,a\n"a "b" c",d\n', "A quote inside a text is written twice", "text",
                                 name="rows.csv"),
    "CSV header alone": Bad(b"question,answer\n", "The files are empty, or have nothing but a header", "alpaca",
                            name="rows.csv"),
    "CSV without a header": Bad(
        b"Who opens in May?,Me.\nWhere?,Here.\n",
        "A row is where the columns' names belong", "alpaca", COLUMNS, name="rows.csv"
    ),
    "everything held out": Bad([GOOD, GOOD], "no rows are left to train on", pointer="/data/held_out/rows",
                               spec={"held_out": {"rows": 2}}),
    "only copies left": Bad([GOOD, GOOD], "copies of held-out rows", pointer="/data/held_out",
                            spec={"held_out": {"rows": 1}}),
    "weights that round to nothing": Bad([GOOD], "no rows are left", pointer="/data/train/0/weight",
                                         source={"weight": 0.1}),
    "undefined column": Bad(
        [{"q": "a", "c": "b"}], "row 1: 'answer' is undefined; its columns are q, c",
        "template", "/data/train/0/template/assistant",
        source=templated("{{ answer }}"),
    ),
    "row template no Jinja": Bad([{"q": "a"}], "not Jinja", "template", "/data/train/0/template/assistant",
                                 source=templated("{% if %}")),
    "row template fails": Bad([{"q": 1}], "row 1: Type", "template", "/data/train/0/template/user",
                              source=templated("a", "{{ q + '' }}")),
    "chat template no Jinja": Bad([GOOD], "not Jinja", pointer="/data/chat_template",
                                  spec={"chat_template": "{% for %}"}),
    "chat template raises": Bad([GOOD], "row 1: TemplateError: no such talk", pointer="/data/chat_template",
                                spec=UNSUPPORTED),
    "chat template hides the answer": Bad([GOOD], "hides where the answer", pointer="/data/chat_template", spec=HIDING),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_data_set(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = tmp_path / case.name
    content = case.content
    path.write_bytes(
        content if isinstance(content, bytes) else "".join(json.dumps(row) + "\n" for row in content).encode()
    )
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, path, case.kind, byte_tokenizer_dir(), source=case.source, **case.spec)
    assert caught.value.exit_code == 11
    assert caught.value.faults[0].where == case.pointer
    assert case.says in str(caught.value.faults[0])
    assert len(str(caught.value)) < 4000  # whatever the rows hold, it has to go through the redactor and into a log


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

    tokenizer = load_tokenizer(tiny_dir())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="no chat template of its own") as caught:
        prepare(tmp_path, [GOOD], "messages", tmp_path / "base")
    assert caught.value.faults[0].where == "/data/chat_template"
    assert caught.value.faults[0].expected.startswith("one of chatml, qwen, llama-3")
    assert (
        prepare(tmp_path, [GOOD], "messages", tmp_path / "base", chat_template="chatml").tokenizer.eos_token
        == "<|im_end|>"
    )


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, [GOOD], "messages", tmp_path / "empty")
    assert caught.value.faults[0].where == "/model/source"


DAMAGED: dict[str, tuple[str, Row, str]] = {
    "a class that is a number": ("tokenizer_config.json", {"tokenizer_class": 7}, "AttributeError"),
    "special tokens in a list": ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "AttributeError"),
    "a model that nobody knows": ("tokenizer.json", {"model": {"type": "Nope"}}, "Exception: data did not match"),
    "a normaliser that breaks its reader": (
        "tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!!"}}, "PanicException",
    ),
    "an opening that breaks every text": (
        "tokenizer.json",
        {"post_processor": {"type": "TemplateProcessing",
                            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [], "special_tokens": {}}},
        "PanicException: no entry found for key",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizer_is_an_input_error(name: str, tmp_path: Path) -> None:
    """The part of it that is in Rust raises no class of its own, or panics."""
    file, change, says = DAMAGED[name]
    model = shutil.copytree(byte_tokenizer_dir(), tmp_path / "model")
    (model / file).write_text(json.dumps(json.loads((model / file).read_text("utf-8")) | change), "utf-8")
    with pytest.raises(InputError) as caught:
        load_tokenizer(model)
    [fault] = caught.value.faults
    assert fault.where == "/model/source"
    assert says in fault.found


def test_a_field_of_a_small_archive_takes_no_more_memory_than_a_row_may(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"text\n")
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="line 2: the row is too long") as caught:
            count_rows(path, SOURCE)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.exit_code == 11


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_added_tokens_are_bounded_by_the_memory_they_would_take(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(byte_tokenizer_dir(), folder)
    long = "x" * (MAX_TOKEN_BYTES + 1)
    path = folder / name
    document = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if name == "tokenizer.json":
        document["added_tokens"].append(document["added_tokens"][0] | {"id": 300, "content": long})
    else:
        document |= {long: 300} if name == "added_tokens.json" else {"additional_special_tokens": [long]}
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(InputError, match=f"{name}: the added tokens are too long") as caught:
        load_tokenizer(folder)
    assert caught.value.faults[0].where == "/model/source"
