"""What `validate` sees of the files that a spec names: each mistake with its place, its words and its exit code."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.__main__ import carry_out, report_failure
from job.arguments import parser
from job.commands import command_render, command_validate
from job.errors import InputError, JobError, PolicyError, SpecError
from job.host.log import Log
from job.preview.all_faults import parse_and_look
from job.report.spoken import words
from job.spec.strict import load_schema
from tests.specs import LEFT_OUT, changed

TRAIN = "/data/train/0"
MESSAGES = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAIRS = {f"{TRAIN}/format": "prompt_completion", f"{TRAIN}/columns": {"prompt": "question", "completion": "answer"}}
ALPACA = 'Write "format": "alpaca", "columns": {"instruction": "question", "output": "answer"}'
LLAMA = {"config.json": '{"model_type": "llama"}', "model.safetensors": "\2\0\0\0\0\0\0\0{}"}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    put({"rows.jsonl": json.dumps(MESSAGES) + "\n"})
    return tmp_path


def put(tree: dict[str, str]) -> None:
    for name, text in tree.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def model(**files: str) -> dict[str, str]:
    return {f"model/{name}": text for name, text in {**LLAMA, **files}.items()}


def events(command: Callable[..., None], changes: dict[str, Any], *arguments: str) -> list[dict[str, Any]]:
    """What the command says of the smallest spec with `changes`; raises what it raises."""
    Path("spec.json").write_text(json.dumps(changed(changes)))
    stream = io.StringIO()
    name = command.__name__.removeprefix("command_")
    command(parser().parse_args([name, "spec.json", *arguments]), Log(stream, json_lines=True))
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def validate(changes: dict[str, Any], *arguments: str) -> list[dict[str, Any]]:
    return events(command_validate, changes, *arguments)


# What is on the disk beside the good rows.jsonl, what the smallest spec gets, the pointer of the fault, words of it.
MISTAKES: dict[str, tuple[dict[str, str], dict[str, Any], str, str]] = {
    "a file misspelt": ({}, {f"{TRAIN}/source": "rows.jsnl"}, f"{TRAIN}/source", "Did you mean rows.jsonl?"),
    "a folder misspelt": ({"data/a.jsonl": "{}"}, {f"{TRAIN}/source": "date/a.jsonl"}, f"{TRAIN}/source",
                          "Did you mean data/a.jsonl?"),
    "nothing near": ({}, {f"{TRAIN}/source": "data/x.jsonl"}, f"{TRAIN}/source",
                     "expected a path, hf://datasets/… or s3://…"),
    "a data set of the Hub": ({}, {f"{TRAIN}/source": "org/rows"}, f"{TRAIN}/source",
                              "Did you mean hf://datasets/org/rows?"),
    "a model of the Hub": ({}, {"/model/source": "Qwen/Qwen3-0.6B"}, "/model/source",
                           "Did you mean hf://Qwen/Qwen3-0.6B?"),
    "a spreadsheet": ({"rows.xlsx": "PK"}, {f"{TRAIN}/source": "rows.xlsx"}, f"{TRAIN}/source",
                      "gz. Save the sheet as CSV UTF-8"),
    "pages": ({"rows.pdf": "%PDF"}, {f"{TRAIN}/source": "rows.pdf"}, f"{TRAIN}/source",
              "Save its text as .txt, where each line is a row"),
    "a folder without rows": ({"data/a.docx": ""}, {f"{TRAIN}/source": "data"}, f"{TRAIN}/source",
                              "no data files are in this folder"),
    "an empty folder": ({"data/a/b": ""}, {f"{TRAIN}/source": "data"}, f"{TRAIN}/source",
                        "(found 'a/b'); expected .jsonl"),
    "an empty file": ({"rows.jsonl": "\n"}, {}, f"{TRAIN}/source", "no rows (found rows.jsonl is empty)"),
    "no JSON": ({"rows.jsonl": "{'a': 1}\n"}, {}, f"{TRAIN}/source", "rows.jsonl line 1: not JSON"),
    "the split of a file": ({}, {f"{TRAIN}/split": "test"}, f"{TRAIN}/split", "no such split"),
    "the columns of another format": ({"rows.jsonl": '{"conversations": []}'}, {}, f"{TRAIN}/columns",
                                      "The columns fit format sharegpt"),
    "questions and answers": ({"rows.csv": "question,answer\na,b\n"}, {f"{TRAIN}/source": "rows.csv"},
                              f"{TRAIN}/columns", ALPACA),
    "with semicolons": ({"rows.csv": "question;answer\na;b\n"}, {f"{TRAIN}/source": "rows.csv"},
                        f"{TRAIN}/columns", ALPACA),
    "Excel's first line": (
        {"rows.csv": "sep=;\nquestion;answer\na;b\n"}, {f"{TRAIN}/source": "rows.csv", **PAIRS}, f"{TRAIN}/source",
        "rows.csv line 1: Excel's line about the separator is not a header (found 'sep=;')",
    ),
    "a column misspelt": (
        {"rows.csv": "question,answer\na,b\n"},
        {f"{TRAIN}/source": "rows.csv", **PAIRS, f"{TRAIN}/columns": {"prompt": "question", "completion": "anwser"}},
        f"{TRAIN}/columns", '{"prompt": "question", "completion": "answer"}',
    ),
    "text for messages": ({"rows.csv": "messages\nhi\n"}, {f"{TRAIN}/source": "rows.csv"}, f"{TRAIN}/source",
                          "rows.csv line 2: messages"),
    "no file of a folder fits": ({"d/a.csv": "x\n1\n", "d/b.csv": "y\n1\n"}, {f"{TRAIN}/source": "d"},
                                 f"{TRAIN}/columns", "(found x)"),
    "a model that is none": ({"model/notes.md": ""}, {"/model/source": "model"}, "/model/source",
                             "expected a config.json at the top"),
    "a model in a folder below": (
        {f"models/small/{name}": text for name, text in LLAMA.items()},
        {"/model/source": "models"}, "/model/source", "models/small",
    ),
    "a GGUF file": ({"m.gguf": "GGUF"}, {"/model/source": "m.gguf"}, "/model/source", "GGUF files cannot be trained"),
    "no weights": ({"model/config.json": "{}"}, {"/model/source": "model"}, "/model/source", "there are no weights"),
    "a damaged config": (model(**{"config.json": "{"}), {"/model/source": "model"}, "/model/source",
                         "config.json is not JSON"),
    "a config of nothing": (model(**{"config.json": "{}"}), {"/model/source": "model"}, "/model/source",
                            "names no model_type"),
    "weights that Git LFS has not fetched": (
        model(**{"model.safetensors": LFS}), {"/model/source": "model"},
        "/model/source", "a pointer of Git LFS, not the weights",
    ),
    "weights that are cut": (model(**{"model.safetensors": "\7" * 20}), {"/model/source": "model"}, "/model/source",
                             "or it is cut"),
    "a template's column": (
        {"rows.csv": "question,answer\na,b\n"},
        {f"{TRAIN}/source": "rows.csv", f"{TRAIN}/format": "template",
         f"{TRAIN}/template": {"system": "{{ range(3) }}", "user": "{{ qestion }}",
                               "assistant": "{% set x = answer %}{{ x }}"}},
        f"{TRAIN}/template/user", "(found qestion); expected one of question, answer. Did you mean question?",
    ),
    "the base of a merge": ({}, {"/model/merge_base": "bases/llama"}, "/model/merge_base",
                            "Did you mean hf://bases/llama?"),
    "the root as output": ({}, {"/output/uri": "/"}, "/output/uri", "this cannot be a run's directory"),
    "a device as output": ({}, {"/output/uri": "/dev/null"}, "/output/uri", "this cannot be a run's directory"),
    "the spec as output": ({}, {"/output/uri": "spec.json"}, "/output/uri", "a file is where the directory should be"),
    "a file's child as output": ({}, {"/output/uri": "rows.jsonl/out"}, "/output/uri",
                                 "a file is where the directory should be"),
    "checkpoints in a file": ({}, {"/output/checkpoints": {"uri": "rows.jsonl"}}, "/output/checkpoints/uri",
                              "a file is where"),
}  # fmt: skip


def test_what_the_plain_image_lacks_is_said_in_the_words_of_render() -> None:
    """Not refused: this machine is not the image."""
    put({})
    said = validate({"/tracking": ["tensorboard", "wandb"], "/evaluation/tasks": ["arc_easy"]}, "--spec-only")
    notes = [(event["pointer"], event["text"]) for event in said if event["event"] == "note"]
    assert [pointer for pointer, _ in notes] == ["/tracking", "/evaluation/tasks"]
    for (_, text), name, part in zip(notes, ("wandb", "arc_easy"), ("TRACKERS", "BENCHMARKS"), strict=True):
        assert f"the plain image lacks the packages for {name}, " in text
        assert "exit 11" in text
        assert f"--build-arg {part}=1" in text
    assert not [event for event in validate({}, "--spec-only") if event["event"] == "note"]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_place(name: str) -> None:
    tree, changes, pointer, words = MISTAKES[name]
    put(tree)
    with pytest.raises(InputError) as failure:
        validate(changes)
    assert [fault.where for fault in failure.value.faults] == [pointer]
    assert words in str(failure.value)
    assert validate(changes, "--spec-only")[-1]["event"] == "valid", "the paths of another machine"


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"model/model.gguf": "GGUF"}, "the weights are not in a form the job loads"),
        (
            {"model/adapter_config.json": "{}", "model/adapter_model.safetensors": "x"},
            "this is an adapter, not a model",
        ),
        (model() | {"model/pytorch_model.bin": "x"}, ""),
    ],
)
def test_a_folder_that_must_not_be_loaded(tree: dict[str, str], words: str) -> None:
    put(tree)
    if not words:
        assert validate({"/model/source": "model"})[-1]["event"] == "valid"
        return
    with pytest.raises(PolicyError, match=words):
        validate({"/model/source": "model"})


def test_what_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    put(model())
    (here / "rows.jsonl").unlink()
    (here / "rows.jsonl").symlink_to(here / "gone.jsonl")
    with pytest.raises(InputError, match=r"/data/train/0/source: there is no such file"):
        validate({"/model/source": "model"})


def test_faults_of_several_places_are_said_together() -> None:
    with pytest.raises(InputError) as failure:
        validate({"/output/uri": "/", "/model/source": "model",
                  "/data/held_out": {"sources": [{"source": "b.csv", "format": "text"}]},
                  f"{TRAIN}/source": "a.csv"})  # fmt: skip
    assert [fault.where for fault in failure.value.faults] == [
        "/data/held_out/sources/0/source", f"{TRAIN}/source", "/model/source", "/output/uri",
    ]  # fmt: skip


def test_a_file_beside_a_spec_elsewhere_is_found_and_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "other").mkdir()
    (here / "spec.json").write_text(json.dumps(changed({})))
    monkeypatch.chdir(here / "other")
    stream = io.StringIO()
    with pytest.raises(InputError, match=r"no such file or directory in .*other"):
        command_validate(parser().parse_args(["validate", "../spec.json"]), Log(stream, json_lines=True))
    assert (
        "../rows.jsonl is there: relative paths are those of the directory where tunejob is started"
        in stream.getvalue()
    )


def test_an_address_of_the_hub_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hub.internal:8080")
    with pytest.raises(InputError, match="HF_ENDPOINT is not an address"):
        validate({})
    put(model())
    assert validate({"/model/source": "model"})[-1]["event"] == "valid", "nothing of the Hub is asked for"


CHATS = model(**{"tokenizer_config.json": '{"chat_template": "x"}'})
NOTES: dict[str, tuple[dict[str, str], dict[str, Any], list[str]]] = {
    "nothing": ({}, {}, []),
    "a tab": ({"rows.csv": "prompt\tcompletion\na\tb\n"},
              {f"{TRAIN}/source": "rows.csv", f"{TRAIN}/format": "prompt_completion"},
              [r"rows.csv: its columns are separated by '\t'"]),
    "plain text, chat model of the Hub": (
        {"rows.csv": "question,answer\na,b\n"},
        {f"{TRAIN}/source": "rows.csv", "/model/source": "hf://org/Llama-3.2-1B-Instruct", **PAIRS},
        ["prompt and completion are learned as plain text, without the model's chat template; "
         "for questions and answers of a chat model "
         'write "format": "alpaca", "columns": {"instruction": "question", "output": "answer"}'],
    ),
    "plain text, chat model here": (
        {"rows.csv": "question,answer\na,b\n"} | CHATS,
        {f"{TRAIN}/source": "rows.csv", "/model/source": "model", **PAIRS},
        ["prompt and completion are learned as plain text"],
    ),
    "plain pairs, chat model": (
        {"rows.jsonl": '{"question": "a", "chosen": "b", "rejected": "c"}\n'} | CHATS,
        {"/model/source": "model", f"{TRAIN}/format": "preference", f"{TRAIN}/columns": {"prompt": "question"},
         "/training/method": "dpo"},
        ["prompt, chosen and rejected are learned as plain text, without the model's chat template; "
         'for questions and answers of a chat model write "columns": {"instruction": "question"}'],
    ),
    "pairs that are a conversation": (
        {"rows.jsonl": '{"question": "a", "chosen": "b", "rejected": "c"}\n'} | CHATS,
        {"/model/source": "model", f"{TRAIN}/format": "preference", f"{TRAIN}/columns": {"instruction": "question"},
         "/training/method": "dpo"}, [],
    ),
    "plain answers with labels, chat model": (
        {"rows.jsonl": '{"prompt": "a", "completion": "b", "good": true}\n'} | CHATS,
        {"/model/source": "model", f"{TRAIN}/format": "kto", f"{TRAIN}/columns": {"label": "good"},
         "/training/method": "kto", "/training/batch_size": 2},
        ["prompt and completion are learned as plain text, without the model's chat template; for questions and "
         'answers of a chat model write "columns": {"label": "good", "instruction": "prompt", "output": "completion"}'],
    ),
    "plain text, base model": (
        {"rows.csv": "question,answer\na,b\n"} | model(),
        {f"{TRAIN}/source": "rows.csv", "/model/source": "model", **PAIRS}, [],
    ),
    "a slice whose rows may look otherwise": ({"rows.jsonl": '{"text": "a"}\n'}, {f"{TRAIN}/split": "train[1:]"}, []),
    "a file of a folder fits": ({"d/a.csv": "x\n1\n", "d/b.jsonl": json.dumps(MESSAGES)}, {f"{TRAIN}/source": "d"}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_what_works_and_may_surprise_is_noted(name: str) -> None:
    tree, changes, notes = NOTES[name]
    put(tree)
    *said, last = validate(changes)
    assert last["event"] == "valid"
    assert len(said) == len(notes)
    for event, note in zip(said, notes, strict=True):
        assert (event["event"], event["pointer"]) == ("note", f"{TRAIN}/source")
        assert event["text"].startswith(note)


def test_a_tracker_that_is_not_installed_is_refused() -> None:
    with pytest.raises(InputError, match=r"/tracking: this tracker is not installed \(found wandb\)"):
        validate({"/tracking": ["wandb"]})


def test_a_large_json_object_is_not_read_whole(here: Path) -> None:
    with (here / "rows.json").open("w") as file:
        file.write('{"rows": [\n' + '{"text": "' + "x" * (9 << 20) + '"}]}')
    notes = [event["text"] for event in validate({f"{TRAIN}/source": "rows.json"}) if event["event"] == "note"]
    assert notes == ["rows.json: its rows were not looked at: it would have to be read whole"]


def test_rendering_for_a_container_says_which_paths_it_would_miss(capsys: pytest.CaptureFixture[str]) -> None:
    events(command_render, {f"{TRAIN}/source": "rows.jsnl"}, "--to", "docker", "-o", "run.sh")
    assert Path("run.sh").is_file()
    [note] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert note["pointer"] == f"{TRAIN}/source"
    assert "Did you mean rows.jsonl?" in note["text"]


def test_the_schema_is_written_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert carry_out(["schema", "-o", "job.schema.json"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(Path("job.schema.json").read_text()) == load_schema("job")


def test_on_a_terminal_each_fault_is_said_once_and_whole() -> None:
    """Only the termination message and the last line of a log are cut."""
    stream = io.StringIO()
    far = "models/" + "long/" * 30 + "name"
    with pytest.raises(JobError) as failure:
        validate({"/model/source": f"{far}", f"{TRAIN}/source": "rows.jsnl"})
    assert report_failure(failure.value, "validate", Log(stream, json_lines=False, words=words)) == 11
    said = stream.getvalue()
    assert [said.count(part) for part in (f"'{far}'", "Did you mean rows.jsonl?", "no such file")] == [1, 1, 2]


def test_where_faults_have_no_end_nothing_more_is_looked_for() -> None:
    """50,000 unknown keys once took five readings, each with every rule: 4 s of processor time."""
    raw = json.dumps({f"modle{number}": number for number in range(50_000)}).encode()
    start = time.process_time()
    with pytest.raises(SpecError) as failure:
        parse_and_look(raw)
    assert time.process_time() - start < 1.5
    assert len(failure.value.faults) == 105  # with the five keys that are missing


FIVE_MISTAKES: dict[str, Any] = {
    "/training": {"lr": 2e-4, "early_stopping": {"patience": 3}},  # an unknown key, and a rule between two places
    "/lora": {"dropout": 3},  # out of range
    "/data/packing": "yes",  # of a wrong type
    TRAIN: {"source": "rows.csv", "format": "alpaca", "columns": {"instruction": "qestion", "output": "answer"}},
}


def test_mistakes_of_five_kinds_are_said_in_one_call_and_each_once() -> None:
    put({"rows.csv": "question,answer\nq,a\n"})
    start = time.process_time()
    with pytest.raises(SpecError) as failure:
        validate(FIVE_MISTAKES)
    assert time.process_time() - start < 1
    said = [(fault.where, str(fault)) for fault in failure.value.faults]
    assert [where for where, _ in said] == [
        "/data/packing", f"{TRAIN}/columns", "/lora/dropout", "/training/early_stopping", "/training/lr",
    ]  # fmt: skip
    for (_, text), part in zip(said, ["Remove the quotes", "question, answer", "less than 1", "training.eval_steps",
                                       "Here it is /training/learning_rate"], strict=True):  # fmt: skip
        assert part in text
    with pytest.raises(SpecError) as failure:
        validate(FIVE_MISTAKES, "--spec-only")
    assert len(failure.value.faults) == 4, "files are those of another machine"


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        # What cannot be known of a source with a fault of its own is not said.
        ({f"{TRAIN}/splitt": "train"}, [f"{TRAIN}/splitt"]),
        # Whether it is there does not depend on what its rows are taken for.
        ({f"{TRAIN}/columns": 5}, [f"{TRAIN}/columns", f"{TRAIN}/source"]),
        ({f"{TRAIN}/columns": {"question": "instruction"}}, [f"{TRAIN}/columns/question", f"{TRAIN}/source"]),
        ({f"{TRAIN}/formt": "text"}, [f"{TRAIN}/formt", f"{TRAIN}/source"]),
        ({f"{TRAIN}/format": "template"}, [f"{TRAIN}/source", f"{TRAIN}/template"]),
        ({f"{TRAIN}/format": "template", "/modle": 1}, [f"{TRAIN}/source", f"{TRAIN}/template", "/modle"]),
        # A key whose right spelling is there was not meant for it.
        ({"/model/source": "./gone", "/modle": 1}, [f"{TRAIN}/source", "/model/source", "/modle"]),
        ({f"{TRAIN}/limit": 0}, [f"{TRAIN}/limit", f"{TRAIN}/source"]),
        ({"/data/train": "gone.jsonl", "/output/uri": "rows.jsonl"}, ["/data/train", "/output/uri"]),
        ({"/output": LEFT_OUT}, [f"{TRAIN}/source", "/output"]),
        (
            {"/output": {"uri": "hf://org/name"}, "/model/max_seq_length": "x"},
            [f"{TRAIN}/source", "/model/max_seq_length", "/output/uri"],
        ),
    ],
)
def test_files_are_looked_at_beside_what_is_wrong(changes: dict[str, Any], places: list[str]) -> None:
    with pytest.raises(SpecError) as failure:
        validate({f"{TRAIN}/source": "gone.jsonl"} | changes)
    assert [fault.where for fault in failure.value.faults] == places


def test_a_spec_that_is_not_there_says_which_is(here: Path) -> None:
    for there, hint in ((None, "tunejob init FILE -o spec.json"), ("my-spec.json", "Did you mean my-spec.json?")):
        if there:
            put({there: "{}"})
        with pytest.raises(SpecError, match=re.escape(hint)):
            command_validate(parser().parse_args(["validate", "my-spek.json"]), Log(io.StringIO(), json_lines=True))
