"""`tunejob init`: which format rows are taken for, what the spec says of the machine, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from job.arguments import parser
from job.data.fit import best_fit
from job.data.worker.shape import Chat, Columns, shape
from job.errors import CapacityError, InputError, SpecError
from job.host.log import Log
from job.init.look import look, name_of, prompts_of, source_spec
from job.init.propose import InitOptions, _about_rows, propose
from job.init.settings import (
    GIB,
    QUICK_RATE_OF_PAIRS,
    STEP_ROWS,
    Device,
    answers_for,
    default_model,
    device_of,
    epochs_for,
    held_out_for,
    rate_for,
    settle,
    wanted_length,
)
from job.init.write import refuse_to_overwrite, write
from job.preview.plan import PlanOptions, make_plan
from job.preview.seen import look_to_validate
from job.spec import parse_spec
from job.spec.sections import prompt_texts, references_of
from tests.data_rows import Row, byte_tokenizer_dir, sized_model, turns, write_rows
from tests.servers import Hub
from tests.specs import parse

ASKED = InitOptions("rows.csv", "train", {}, None, None, None)

FITS: list[tuple[Row, str, dict[str, str]]] = [
    ({"messages": turns("a", "b")}, "messages", {}),
    ({"chat": turns("a", "b"), "id": 1}, "messages", {"messages": "chat"}),
    ({"messages": json.dumps(turns("a", "b"))}, "messages", {}),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "sharegpt", {}),
    ({"conversations": turns("a", "b")}, "sharegpt", {}),
    ({"prompt": turns("a"), "completion": [turns("a", "b")[1]]}, "prompt_completion", {}),
    ({"instruction": "a", "input": "", "output": "b", "text": "ab"}, "alpaca", {}),
    ({"question": "a", "answer": "b"}, "alpaca", {"instruction": "question", "output": "answer"}),
    ({"Question": "a", "Answer": "b"}, "alpaca", {"instruction": "Question", "output": "Answer"}),
    ({"id": "1", "q": "a", "a": "b"}, "alpaca", {"instruction": "q", "output": "a"}),
    ({"input": "a", "output": "b"}, "alpaca", {"instruction": "input"}),
    ({"instruction": "a", "context": "c", "response": "b"}, "alpaca", {"output": "response", "input": "context"}),
    ({"system_prompt": "s", "question": "a", "response": "b"}, "alpaca",
     {"instruction": "question", "output": "response", "system": "system_prompt"}),
    ({"prompt": "a", "completion": "b"}, "alpaca", {"instruction": "prompt", "output": "completion"}),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", {"instruction": "prompt"}),
    ({"question": "a", "chosen": "b", "rejected": "c", "score": 1}, "preference", {"instruction": "question"}),
    ({"instruction": "a", "input": "d", "chosen": "b", "rejected": "c"}, "preference", {}),
    ({"chosen": turns("a", "b"), "rejected": turns("a", "c")}, "preference", {}),
    ({"prompt": "a", "chosen": turns("a", "b"), "rejected": turns("a", "c")}, "preference", {}),
    ({"prompt": turns("a"), "chosen": turns("a", "b")[1:], "rejected": turns("a", "c")[1:]}, "preference", {}),
    ({"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c"}, "preference", {}),
    ({"prompt": "a", "chosen": "b"}, "alpaca", {"instruction": "prompt", "output": "chosen"}),
    ({"text": "a"}, "text", {}),
    ({"content": "a", "url": "b"}, "text", {"text": "content"}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "kind", "columns"), FITS, ids=[" ".join(row) for row, *_ in FITS])
def test_the_format_that_fits(row: Row, kind: str, columns: dict[str, str]) -> None:
    found = best_fit([row] * 3, {})
    assert found is not None
    assert (found.format, found.columns, found.faults) == (kind, columns, ())
    assert found.is_chat == (kind != "text"), "a question with its answer is said in the model's chat template"


LABELLED: list[tuple[Row, str, dict[str, str]]] = [
    ({"prompt": "a", "completion": "b"}, "label", {"instruction": "prompt", "output": "completion"}),
    ({"question": "a", "answer": "b", "id": "1"}, "label", {"instruction": "question", "output": "answer"}),
    ({"prompt": turns("a"), "completion": turns("a", "b")[1:]}, "label", {}),
    ({"messages": turns("a", "b")}, "kto_tag", {"label": "kto_tag"}),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "label", {}),
]


@pytest.mark.parametrize(("row", "label", "columns"), LABELLED, ids=[" ".join(row) for row, *_ in LABELLED])
def test_answers_with_labels_of_both_kinds_are_compared(row: Row, label: str, columns: dict[str, str]) -> None:
    for good, bad in ((True, False), (1, 0), ("true", "false")):
        found = best_fit([row | {label: good}, row | {label: bad}] * 2, {})
        assert found is not None
        assert (found.format, found.columns, found.faults, found.is_chat) == ("kto", columns, (), True)
    for labels in ((True, True), ("spam", "ham")):  # nothing to compare; another meaning
        found = best_fit([row | {label: one} for one in labels], {})
        assert found is not None
        assert (found.format != "kto", found.faults) == (True, ())


def test_pairs_are_compared_though_one_is_not_whole_and_learned_plainly_if_asked() -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows: list[Row] = [*[pair] * 3, pair | {"rejected": 5}]
    found, plain = best_fit(rows, {}), best_fit(rows, {"instruction": "prompt", "output": "chosen"})
    assert found is not None
    assert plain is not None
    assert (found.format, [number for number, _ in found.faults]) == ("preference", [3])
    assert (plain.format, plain.faults) == ("alpaca", ())
    assert [fit and fit.format for fit in (best_fit(rows[2:] + rows[3:], {}),)] == ["alpaca"], "most are none"


def test_a_column_that_was_given_a_meaning_has_no_other() -> None:
    """`input` as the question was its addition as well."""
    found = shape("alpaca", {"input": "Q", "output": "A"}, Columns({"instruction": "input"}))
    assert isinstance(found, Chat)
    assert found.messages == turns("Q", "A")


def test_columns_may_be_named_and_bad_rows_are_told_from_good_ones() -> None:
    rows: list[Row] = [{"Frage": "a", "Antwort": "b"}, {"Frage": "a", "Antwort": None}]
    assert best_fit(rows, {}) is None
    found = best_fit(rows, {"instruction": "Frage", "output": "Antwort"})
    assert found is not None
    assert (found.format, found.faults) == ("alpaca", ((1, "output must be text, not null"),))


def as_csv(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_tsv(path: Path, rows: Sequence[Row]) -> Path:
    """A comma in the header separates nothing."""
    path.write_text(
        "".join("\t".join((*map(str, row), "a, b")) + "\n" for row in [rows[0].keys(), *(r.values() for r in rows)]),
        "utf-8",
    )
    return path


def as_json(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text(json.dumps({"rows": list(rows)}), "utf-8")
    return path


def as_parquet(path: Path, rows: Sequence[Row]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def as_folder(path: Path, rows: Sequence[Row]) -> Path:
    path.mkdir()
    write_rows(path / "train.jsonl", rows)
    return path


WRITERS: list[tuple[str, Callable[[Path, Sequence[Row]], Path]]] = [
    ("rows.csv", as_csv), ("rows.tsv", as_tsv), ("rows.json", as_json), ("rows.jsonl.gz", write_rows),
    ("rows.parquet", as_parquet), ("rows", as_folder),
]  # fmt: skip


@pytest.mark.parametrize(("name", "written"), WRITERS, ids=[name for name, _ in WRITERS])
def test_every_kind_of_file_that_a_run_reads(
    name: str, written: Callable[[Path, Sequence[Row]], Path], tmp_path: Path
) -> None:
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(30)]
    path = written(tmp_path / name, rows)
    found = look(source_spec(str(path), "train"), {}, tmp_path / "scratch")
    assert (found.count, found.whole, found.fit.format, len(found.rows)) == (30, True, "alpaca", 30)
    assert prompts_of(found) == [{"prompt": f"What is {i}?", "reference": str(i)} for i in (0, 14, 29)]
    separated = ["rows.csv: its columns are separated by ';'"]
    assert [remark for remark in found.remarks if "separated" in remark] == (separated if name == "rows.csv" else [])


def test_of_a_hub_data_set_the_first_file_of_the_subset_is_enough(hub: Hub, tmp_path: Path) -> None:
    rows = b"".join(json.dumps({"question": f"{number}?", "answer": "a"}).encode() + b"\n" for number in range(3))
    card = (
        b"---\nconfigs:\n- {config_name: other, data_files: other.jsonl}\n"
        b"- {config_name: main, data_files: 'main-*.jsonl'}\n---\n"
    )
    files = {"README.md": card, "other.jsonl": b"{}\n", "main-0.jsonl": rows, "main-1.jsonl": rows}
    hub.repo("datasets/org/rows").commit(files)
    found = look(source_spec("hf://org/rows/main", "train"), {}, tmp_path)
    assert (found.count, found.whole, found.fit.format, found.source.spec.subset) == (3, False, "alpaca", "main")
    assert hub.asked(r"GET .*/main-0\.jsonl") >= 1
    assert hub.asked(r".*/main-1\.jsonl") == 0
    assert held_out_for(found.count, found.whole)[0] == "auto", "how many there are in all is not known"


def test_prompts_hold_nothing_that_a_spec_may_not(tmp_path: Path) -> None:
    questions = ["sk-ant-api03-" + "a1B2" * 20, "\ud800", " ", "x" * 3000, "What?", "What?"]
    path = write_rows(tmp_path / "rows.jsonl", [])
    path.write_text("".join(json.dumps({"messages": turns(question, "b")}) + "\n" for question in questions), "utf-8")
    prompts = prompts_of(look(source_spec(str(path), "train"), {}, tmp_path / "scratch"))
    assert prompts == [{"prompt": "What?", "reference": "b"}]
    for answer in (questions[0], "\ud800", " ", "x" * 3000):
        path.write_text(json.dumps({"messages": turns("What?", answer)}), "utf-8")
        assert prompts_of(look(source_spec(str(path), "train"), {}, tmp_path / "scratch")) == ["What?"]
    path.write_text(json.dumps({"text": "Once upon a time."}), "utf-8")
    assert prompts_of(look(source_spec(str(path), "train"), {}, tmp_path / "scratch")) == ["Once upon a time."]


def test_prompts_are_short_where_rows_have_short_questions(tmp_path: Path) -> None:
    """The base is asked them as well, and a CPU reads slowly."""
    lengths = [900, 20, 800, 30, 700, 40, 50]
    rows = [{"messages": turns(str(number) * length, "b")} for number, length in enumerate(lengths)]

    def found(some: Path) -> list[int]:
        prompts = prompts_of(look(source_spec(str(some), "train"), {}, tmp_path / "scratch"))
        return [len(each["prompt"]) for each in prompts if isinstance(each, dict)]

    assert found(write_rows(tmp_path / "rows.jsonl", rows)) == [20, 30, 50]
    assert found(write_rows(tmp_path / "long.jsonl", rows[:5])) == [20, 30, 700]


def test_answers_are_as_long_as_those_of_the_rows() -> None:
    """Which the mark at their end belongs to."""
    cpu, gpu = Device(None, ""), Device(24 * GIB, "")
    asked = [(cpu, 1), (cpu, 16), (cpu, 17), (cpu, 64), (cpu, 65), (cpu, None), (gpu, 65), (gpu, 129), (gpu, None)]
    assert [answers_for(*one)[0] for one in asked] == [16, 16, 32, 64, 64, 64, 80, 128, 128]


def test_a_text_file_is_said_to_have_a_row_in_each_line(tmp_path: Path) -> None:
    """Who has a page in each file expects a row to be a file."""
    (tmp_path / "page.txt").write_text("One.\n\nTwo.\n")
    reasons = _about_rows(look(source_spec(str(tmp_path), "train"), {}, tmp_path / "scratch"))
    assert [words.partition(" in ")[0] for topic, words in reasons if topic == "rows"] == ["2"]
    assert [words.partition("; ")[2] for topic, words in reasons if topic == "format"] == [
        "each line of a .txt file is a row by itself"
    ]


def test_pairs_of_one_answer_and_labels_of_one_kind_are_named(tmp_path: Path) -> None:
    """Nothing is learned of the first; of the second, answers that were called bad as good ones."""

    def said(name: str, text: str) -> list[str]:
        (tmp_path / name).write_text(text)
        reasons = _about_rows(look(source_spec(str(tmp_path / name), "train"), {}, tmp_path / "scratch"))
        return [words for topic, words in reasons if "the same" in words or topic == "method"][-1:]

    assert said("pairs.csv", "prompt,chosen,rejected\nWho?,Me.,Me.\nWhen?,Now.,Then.\n") == [
        "1 have the same chosen and rejected answer, of which nothing is learned: pairs.csv line 2; a run refuses many"
    ]
    for labels in ("00", "11", "yn", "02"):
        assert said("one.csv", "prompt,completion,label\nWho?,Me.,{}\nWhen?,Now.,{}\n".format(*labels)) == [
            "sft: the answers are learned, whatever the column label says: "
            "kto reads true or false, 1 or 0, and rows of both"
        ]
    assert "whatever" not in said("both.csv", "prompt,completion,label\nWho?,Me.,0\nWhen?,Now.,1\n")[0]


def test_rows_with_empty_answers_are_counted_and_named(tmp_path: Path) -> None:
    """A run refuses more than a few; the spec is written all the same."""
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\nWho?,Me.\nWhen?,\nWhere?, \nWhy?,So.\n")
    reasons = _about_rows(look(source_spec(str(path), "train"), {}, tmp_path / "scratch"))
    said = [words for topic, words in reasons if "empty answer" in words]
    assert said == [
        "2 have an empty answer, of which nothing is learned: rows.csv line 3, rows.csv line 4; a run refuses many"
    ]


REFUSED: list[tuple[list[Row], str]] = [
    (
        [{"frage": "a", "antwort": "b"}],
        "/data/train/0/columns: no format fits these columns (found frage, antwort); expected messages",
    ),
    ([{"Who opens in May?": "Where?", "Me.": "Here."}], "A row is where the columns' names belong"),
    ([{"messages": [{"role": "user"}]}], "none of 1 rows can be used as format messages"),
]


@pytest.mark.parametrize(("rows", "words"), REFUSED, ids=["columns", "header", "rows"])
def test_rows_that_fit_nothing_are_refused(rows: list[Row], words: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError) as refused:
        look(source_spec(str(path), "train"), {}, tmp_path / "scratch")
    assert words in str(refused.value)
    ways_out = ("--columns instruction=A,output=B", "such as question,answer", "rows.jsonl row 1: message 1: content")
    assert any(way in str(refused.value) for way in ways_out)


@pytest.mark.parametrize(
    ("given", "place", "words"),
    [
        ({"rows": "nope.csv"}, "FILE", "Did you mean rope.csv?"),
        ({"rows": "rope.csv", "split": "test"}, "--split", "no such split"),
        ({"rows": "rope.csv", "columns": {"instruction": "q", "output": "x"}}, "--columns", "no format fits"),
    ],
)  # fmt: skip
def test_a_fault_has_the_commands_own_place(
    given: dict[str, Any], place: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    as_csv(tmp_path / "rope.csv", [{"q": "a", "a": "b"}])
    with pytest.raises(InputError) as refused:
        propose(replace(ASKED, **given), alone=False)
    assert [fault.where for fault in refused.value.faults] == [place]
    assert words in str(refused.value)


ADDRESSES = [
    ("hf://openai/gsm8k/main", "hf://datasets/openai/gsm8k", "main", "gsm8k"),
    ("hf://datasets/openai/gsm8k", "hf://datasets/openai/gsm8k", None, "gsm8k"),
    ("hf://org/Rows_2@refs/pr/1", "hf://datasets/org/Rows_2@refs/pr/1", None, "rows-2"),
    ("data/My Rows.jsonl.gz", "data/My Rows.jsonl.gz", None, "my-rows"),
    ("s3://bucket/ä.csv", "s3://bucket/ä.csv", None, "my-run"),
]


@pytest.mark.parametrize(("given", "source", "subset", "name"), ADDRESSES)
def test_addresses_and_names(given: str, source: str, subset: str | None, name: str) -> None:
    spec = source_spec(given, "train")
    assert (spec.source, spec.subset, name_of(spec.source)) == (source, subset, name)


SETTINGS: list[tuple[float, str, int, str]] = [
    (24, "hf://org/Tiny-1B", 1024, "16bit"),
    (24, "hf://org/Base-8B", 1024, "16bit"),
    (16, "hf://org/Base-8B", 4096, "4bit"),
    (24, "hf://org/Base-8B-bnb-4bit", 256, "4bit"),
    (12, "hf://org/Base-8B", 8192, "4bit"),
    (80, "hf://org/Base-70B", 2048, "4bit"),
]


@pytest.mark.parametrize(("gpu", "model", "length", "precision"), SETTINGS)
def test_what_fits_the_gpu_is_chosen(gpu: float, model: str, length: int, precision: str) -> None:
    document, why = settle(draft(model), device_of(gpu), length, None)
    spec = parse_spec(json.dumps(document).encode())
    assert (spec.model.precision, spec.training.micro_batch, spec.model.max_seq_length) == (precision, "auto", length)
    assert spec.training.batch_size * spec.training.gradient_accumulation_steps == 8
    assert f"of {gpu:g} GiB" in why


def draft(model: str) -> dict[str, Any]:
    train = [{"source": "rows.csv", "format": "alpaca"}]
    return {
        "version": 1, "name": "x", "model": {"source": model},
        "data": {"train": train}, "training": {}, "output": {"uri": "x"}
    }  # fmt: skip


def test_what_fits_nowhere_is_refused_and_long_rows_give_way() -> None:
    with pytest.raises(CapacityError, match=r"does not fit the GPU, even in 4 bits \(found 24 GiB\); expected about"):
        settle(draft("hf://org/Base-70B"), device_of(24), 256, None)
    document, why = settle(draft("hf://org/Base-8B"), device_of(9.5), 32768, None)
    assert document["model"]["max_seq_length"] < 32768
    assert f"rows longer than {document['model']['max_seq_length']} tokens are cut" in why
    on_cpu, _ = settle(draft("hf://org/Base-8B"), Device(None, ""), 512, None)
    assert on_cpu["model"] == {
        "source": "hf://org/Base-8B",
        "precision": "16bit",
        "max_seq_length": 512,
        "backend": "peft",
    }


def test_small_choices() -> None:
    assert [wanted_length(tokens, False, None) for tokens in (1, 256, 257, 10**6)] == [256, 256, 512, 32768]
    assert wanted_length(5000, False, 2048) == wanted_length(10**6, True, None) == 2048
    assert wanted_length(20, True, None) == 256
    wanted = [8, 8, 8, 7, 4, 4, 3, 3, 2, 1]
    assert [epochs_for(rows) for rows in (1, 99, 100, 120, 200, 266, 267, 999, 1000, 5000)] == wanted
    default = parse({}).training
    assert default.batch_size * default.gradient_accumulation_steps == STEP_ROWS, "of which there are to be enough"
    assert [held_out_for(*rows)[0] for rows in ((100, True), (5, False), (99, True), (20, True), (19, True))] == [
        "auto", "auto", {"rows": 9}, {"rows": 2}, False,
    ]  # fmt: skip
    pairs = draft("hf://org/Base-135M") | {"training": {"method": "dpo"}}
    pairs["data"]["train"][0]["format"] = "preference"
    assert [rate and rate[0] for rate in (rate_for(pairs, 499_999_999), rate_for(pairs, 500_000_000))] == [0.0001, None]
    rates = [rate_for(draft("hf://org/Base-135M"), parameters) for parameters in (None, 499_999_999, 500_000_000)]
    assert [rate and rate[0] for rate in rates] == [0.001, 0.001, None]
    assert default_model(Device(24 * GIB, ""))[0] != default_model(Device(None, ""))[0]
    assert default_model(Device(4 * GIB, "")) == default_model(Device(None, ""))


def test_a_base_model_gets_a_template_and_samples_show_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "base"
    model.mkdir()
    for file in byte_tokenizer_dir().iterdir():
        if file.name != "chat_template.jinja":
            (model / file.name).write_bytes(file.read_bytes())
    save_file({"w": torch.zeros(4, 4)}, model / "model.safetensors")
    as_csv(tmp_path / "rows.csv", [{"question": f"{i}?", "answer": f"{i}!"} for i in range(25)])
    (tmp_path / "rows-tuned").mkdir()  # somebody's
    (tmp_path / "rows-tuned-2").mkdir()
    failed = {"status": "failed", "run_id": "0123456789abcdef", "report": []}
    (tmp_path / "rows-tuned-2" / "stats.json").write_text(json.dumps(failed), "utf-8")
    asked = InitOptions("rows.csv", "train", {}, str(model), None, None)
    monkeypatch.setenv("TUNEJOB_DEVICE", "cpu")
    proposal = propose(asked, alone=False)
    spec = parse_spec(json.dumps(proposal.document).encode())
    assert (spec.data.chat_template, spec.output.uri, spec.model.max_seq_length) == ("chatml", "rows-tuned-2", 256)
    assert [sample.splitlines()[-2:] for sample in proposal.samples[:2]] == [
        ["<|im_start|>assistant", f"⟦{i}!<|im_end|>⟧"] for i in (0, 1)
    ]
    assert len(proposal.samples) == 3
    assert spec.evaluation.max_new_tokens == 16, "an answer of two or three bytes, and its end"
    said, spoken = io.StringIO(), io.StringIO()
    write(proposal, None, said, Log(spoken, json_lines=True))
    assert json.loads(said.getvalue()) == proposal.document
    lines = spoken.getvalue().splitlines()
    assert lines[1].startswith(
        "format    alpaca; its instruction is the column question; its output is the column answer: "
    )
    assert "template  chatml, as the model has none of its own" in lines
    assert lines[-1] == "Next: tunejob validate spec.json && tunejob run spec.json"


COMPARED: dict[str, tuple[list[Row], str, str, str]] = {
    "dpo": (
        [{"question": f"{i}?", "chosen": f"{i}!", "rejected": "No.", "score": "3"} for i in range(25)],
        "preference", "a chosen and a rejected answer", "rejected: ⟦No.<|im_end|>⟧",
    ),
    "kto": (
        [{"question": f"{i}?", "answer": f"{i}!", "label": str(i % 2), "score": "3"} for i in range(25)],
        "kto", "by its label whether its answer is good", "to become less likely",
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", COMPARED)
def test_rows_that_say_which_answer_is_better_get_the_method_that_learns_from_that(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, kind, why, sample = COMPARED[method]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEJOB_DEVICE", "cpu")
    (model := tmp_path / "model").mkdir()
    sized_model(model, 400_000_000, {"hidden_size": 1024, "num_hidden_layers": 16})
    as_csv(tmp_path / "rows.csv", rows)
    proposal = propose(replace(ASKED, model=str(model)), alone=False)
    spec = parse_spec(json.dumps(proposal.document).encode())
    assert (spec.training.method, spec.data.train[0].format) == (method, kind)
    assert (spec.training.learning_rate, spec.evaluation.max_new_tokens) == (QUICK_RATE_OF_PAIRS, 16)
    assert prompt_texts(spec.evaluation.prompts) == ("0?", "12?", "24?")
    bad = method == "kto"  # of these, those with an even number
    assert references_of(spec.evaluation.prompts) == ((None,) * 3 if bad else ("0!", "12!", "24!"))
    said = [f"{topic}: {words}" for topic, words in proposal.reasons]
    assert any(line.startswith(f"method: {method}: each row") and why in line for line in said)
    assert "rows: columns that nothing reads: 'score' (25)" in said
    assert sample in proposal.samples[0]
    assert not look_to_validate(spec, tmp_path).failures
    options = PlanOptions(tmp_path, None, {}, advice=True, alone=False)
    (scratch := tmp_path / "scratch").mkdir()
    plan = make_plan(spec, options, scratch, Log(io.StringIO(), json_lines=True))
    assert plan.failure() is None
    assert [advice["where"] for advice in plan.document()["advice"]] == ["/data/train"], "few rows, and nothing else"


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    refuse_to_overwrite(str(path), force=False)
    path.write_text("mine", "utf-8")
    refuse_to_overwrite(str(path), force=True)
    with pytest.raises(SpecError, match=r"this file is there already .*--force writes over it"):
        refuse_to_overwrite(str(path), force=False)


@pytest.mark.parametrize(
    "words", [["--gpu", "0"], ["--gpu", "24GB"], ["--columns", "instruction"], ["--columns", "a=,b=c"]], ids=str
)
def test_options_that_mean_nothing_are_refused(words: list[str]) -> None:
    with pytest.raises(SpecError, match=r"argument --\w+: invalid"):
        parser().parse_args(["init", "rows.csv", *words])
    assert parser().parse_args(["init", "x", "--columns", "instruction=A b,output=C"]).columns == {
        "instruction": "A b",
        "output": "C",
    }
