"""What of the rows is not learned as it is written is left out as its author wants it, or reported with its count."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel

from job.data.columns import ColumnUse
from job.data.read import read_rows, remarks
from job.data.tokenizer import end_tokens, load_tokenizer
from job.data.worker.batch import answer
from job.data.worker.tokenise import Tokeniser
from job.data.worker.wire import MARKED, Job, Reply, Request, Source
from job.errors import InputError
from tests.data_rows import Row, byte_tokenizer_dir, job_spec, prepare, turns
from tests.smollm2 import model_dir
from tests.unit.test_data_read import write_arrow

SOURCE = "/data/train/0/source"


def learned(
    kind: str, *rows: Row, template: dict[str, str] | None = None, columns: dict[str, str] | None = None
) -> Reply:
    """What a worker makes of rows, in this process."""
    tokenizer = load_tokenizer(byte_tokenizer_dir())
    job = Job(tokenizer.chat_template, {}, end_tokens(tokenizer), "responses", 512, [], tokenizer.eos_token_id)
    source = Source("/data/train/0", kind, columns or {}, template or {}, "\n\n")
    reply, _ = answer(Request("rows", job, source=source, rows=rows), tokenizer.backend_tokenizer, lambda pointer: None)
    return reply


ROWS: dict[str, Row] = {
    "messages": {"messages": turns("a", "b")},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "alpaca": {"instruction": "a", "output": "b"},
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "text": {"text": "a b"},
    "template": {"q": "a"},
}
TEMPLATE = {"user": "{{ q }}", "assistant": "b"}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_that_is_marked_is_not_learned(kind: str) -> None:
    off = [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"loss": False},
        {"masked": True},
        {"train": "False"},
        {"weight": "0"},
    ]
    on = [
        {},
        {"weight": 1},
        {"train": True},
        {"masked": False},
        {"loss": None},
        {"train": "true"},
        {"weight": ""},
        {"loss": 2.31},
    ]
    rows = [ROWS[kind] | mark for mark in (*off, *on)]
    reply = learned(kind, *rows, template=TEMPLATE if kind == "template" else None)
    assert reply.faults == []
    assert reply.dropped == [[index, MARKED, 0] for index in range(len(off))]
    assert [index for index, *_ in reply.sequences] == list(range(len(off), len(rows)))
    assert {name: count for name, count in reply.remarks.items() if name.startswith("mark")} == {"mark loss": 1}


def test_a_column_that_is_read_under_the_name_of_a_mark_is_none() -> None:
    assert learned("alpaca", {"instruction": "a", "loss": "0"}, columns={"output": "loss"}).dropped == []
    assert (
        learned(
            "template", {"q": "a", "weight": 0, "label": False}, template=TEMPLATE | {"user": "{{ weight }}{{ label }}"}
        ).dropped
        == []
    )


def test_rows_that_are_marked_do_not_count_as_spoilt(tmp_path: Path) -> None:
    rows = [ROWS["messages"], *[ROWS["messages"] | {"weight": 0}] * 3, ROWS["messages"] | {"weight": 12.5, "late": 1}]
    rows.append({"messages": [turns("a")[0], turns("a", "b")[1] | {"train": False}]})
    report = prepare(tmp_path, rows, "messages", byte_tokenizer_dir()).report
    assert (report.train["rows"], report.train["dropped_reasons"]) == (2, {MARKED: 4})
    assert report.notes == [
        f"{SOURCE}: columns that nothing reads: 'late' (1)",
        "4 rows are marked not to be learned and left out",
        "rows have values other than 0 and 1, false and true in these columns, and are learned: 'weight' (1)",
    ]


def border(prompt: str, completion: str, learn_all: bool = False) -> tuple[list[str], list[str], str]:
    """Tokens of the prompt and of what is learned, and what is said of the place between them."""
    tokenizer = load_tokenizer(model_dir())
    sequence, said = Tokeniser(tokenizer.backend_tokenizer, 512, [], 2).pair(prompt, completion, learn_all)
    asked = tokenizer(prompt)["input_ids"]
    assert list(sequence.input_ids[: len(asked)]) == asked  # as at inference
    texts = [tokenizer.decode([token]) for token in sequence.input_ids]
    assert "".join(texts) == f"{prompt}{completion}<|im_end|>"
    unlearned = sequence.labels.count(-100)
    return texts[:unlearned], texts[unlearned:], said


def test_a_prompt_has_the_tokens_that_it_is_asked_with() -> None:
    """One token with the completion's beginning would be all that is learned, or never seen by who asks."""
    assert border("n", "ew") == (["n"], ["ew", "<|im_end|>"], "apart")
    assert border("Q: 2+2?\nA: ", "four") == (
        ["Q", ":", " ", "2", "+", "2", "?", "\n", "A", ":", " "],
        ["four", "<|im_end|>"],
        "apart",
    )
    assert border("Q:", " four") == (["Q", ":"], [" four", "<|im_end|>"], "")
    assert border("n", "ew", learn_all=True) == (["n"], ["ew", "<|im_end|>"], "apart")


def with_spaces_before(pieces: str) -> Any:
    """A tokenizer of these pieces that puts a space before whatever it encodes, as SentencePiece's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((piece, -1.0) for piece in pieces.split("|"))], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


@pytest.mark.parametrize(
    ("pieces", "ids", "labels", "border"),
    [
        ("▁|▁A|:|▁x|x|\n", ["▁A", ":", "▁", "x"], ["x"], "apart"),
        ("▁|▁A|:|▁x", ["▁A", ":", "▁x"], ["▁x"], "merged"),  # x alone is not a token
    ],
)
def test_a_tokenizer_that_puts_a_space_before_all_text(
    pieces: str, ids: list[str], labels: list[str], border: str
) -> None:
    tokenizer = with_spaces_before(pieces)
    sequence, said = Tokeniser(tokenizer, 512, [], None).pair("A: ", "x", False)
    assert [tokenizer.id_to_token(token) for token in sequence.input_ids] == ids
    assert [tokenizer.id_to_token(token) for token in sequence.labels if token != -100] == labels
    assert said == border


@pytest.mark.parametrize(
    ("model", "unknown"),
    [
        (WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"), [False, True, True]),
        (Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=0, byte_fallback=False), [False, True, True]),
        (BPE({"a": 0, "<unk>": 1, "<0xC3>": 2, "<0xA9>": 3, "<0xF0>": 4, "<0x92>": 5, "<0x80>": 6, "<0xB1>": 7}, [],
             unk_token="<unk>", byte_fallback=True), [False, False, False]),
    ],
)  # fmt: skip
def test_characters_that_a_vocabulary_lacks_are_noticed(model: Any, unknown: list[bool]) -> None:
    tokeniser = Tokeniser(Tokenizer(model), 512, [], None)
    assert [tokeniser.has_unknown(next(tokeniser.document(text))) for text in ("a", "é", "aé")] == unknown


def test_answers_that_begin_within_a_token_are_counted(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    rows = [{"messages": turns("a", "b", "c", "2")}, {"prompt": "n", "completion": "ew"}]
    told = []
    for number, (row, kind) in enumerate(zip(rows, ("messages", "prompt_completion"), strict=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        told += prepare(folder, [row], kind, **({"chat_template": template} if kind == "messages" else {})).report.notes
    # " b" and not "2": a digit is a token by itself
    assert told[0].startswith("1 answers begin within a token that also holds the end of the text before them")
    assert told[1:] == [
        "prompt and completion of 1 rows would share a token if they were one text; "
        "the prompt is tokenised by itself, as at inference"
    ]


def test_words_that_may_mean_that_nothing_is_there(tmp_path: Path) -> None:
    """What was typed as an answer stays; NaN, Python's missing value, is one where a value may be missing."""
    path = tmp_path / "rows.csv"
    path.write_text("instruction,input,output\nWhat is 0/0?,NaN,NaN\nMissing in R?,NA,NA\nIn Python?,,None\n")
    prepared = prepare(tmp_path, path, "alpaca", byte_tokenizer_dir())
    texts = [prepared.tokenizer.decode(row["input_ids"]) for row in prepared.train]
    assert [text.split("assistant\n")[1] for text in texts] == ["NaN<|im_end|>\n", "NA<|im_end|>\n", "None<|im_end|>\n"]
    assert ["NaN" in text.split("assistant\n")[0] for text in texts] == [False] * 3
    assert prepared.report.notes == [
        f"{SOURCE}: cells that are taken as text, not as missing: "
        "'output' NaN (1), 'input' NA (1), 'output' NA (1), 'output' None (1)",
        f"{SOURCE}: cells that are taken as missing: 'input' NaN (1)",
    ]


def test_words_in_columns_of_row_templates_and_in_files_that_know_null() -> None:
    template = {"user": "{{ q }}", "assistant": "{{ a or 'none' }}"}
    columns = ColumnUse(
        job_spec([{"source": "rows.csv", "format": "template", "template": template}]).data.train[0], SOURCE
    )
    row = columns.settled({"q": "NA", "a": "nan", "b": "null"})
    assert row == {"q": "NA", "a": None, "b": "null"}
    columns.see(row, all_text=True)
    columns.see(row, all_text=False)
    assert columns.notes() == [
        f"{SOURCE}: cells that are taken as text, not as missing: 'q' NA (1)",
        f"{SOURCE}: cells that are taken as missing: 'a' NaN (1)",
    ]


def test_columns_without_end_take_no_memory_without_end() -> None:
    columns = ColumnUse(job_spec([{"source": "rows.jsonl", "format": "text"}]).data.train[0], SOURCE)
    for number in range(3000):
        columns.see({"text": "a", str(number): 1}, all_text=False)
    assert columns.notes()[0].endswith("'7' (1) and 992 others")


def test_what_is_beside_the_rows_in_their_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"version": 1, "data": [{"text": "a"}], "licence": "x"}')
    assert remarks(path, "") == ["rows.json: its rows are those of the key 'data'; not read: 'version', 'licence'"]
    for text in ('{"data": [{"text": "a"}]}', '[{"text": "a"}]', '{"text": "a"}', '{"text": "a"}\n{"text": "b"}', ""):
        path.write_text(text)
        assert remarks(path, "") == []


VIEWS = {
    "string_view": pyarrow.array(["größer"], pyarrow.string_view()),
    "binary_view": pyarrow.array(["größer".encode()], pyarrow.binary_view()),
    "list_view": pyarrow.array([["größer".encode()]], pyarrow.list_view(pyarrow.binary())),
    "large_list_view": pyarrow.array([["größer".encode()]], pyarrow.large_list_view(pyarrow.binary_view())),
    "dictionary": pyarrow.array(["größer".encode()], pyarrow.dictionary(pyarrow.int8(), pyarrow.binary())),
    "in_structs": pyarrow.array(
        [[{"a": "größer".encode(), "b": None}]],
        pyarrow.list_view(pyarrow.struct({"a": pyarrow.binary_view(), "b": pyarrow.string_view()})),
    ),
}


def test_newer_types_of_arrow(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    write_arrow(path, pyarrow.table(VIEWS))
    (row,) = read_rows(path, "")
    lists = {"list_view": ["größer"], "large_list_view": ["größer"], "in_structs": [{"a": "größer"}]}
    assert row == dict.fromkeys(VIEWS, "größer") | lists


def test_names_that_arrow_has_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    one = pyarrow.array(["a"])
    struct = pyarrow.StructArray.from_arrays([one, one], names=["a", "a"])
    held = pyarrow.ListArray.from_arrays([0, 1], struct)
    for table, words in (
        (pyarrow.Table.from_arrays([one, one], names=["text", "text"]), "the column 'text' is there twice"),
        (pyarrow.table({"m": held}), "the struct's key 'a' is there twice"),
        (pyarrow.table({"m": pyarrow.array([[("k", "a"), ("k", "b")]],
                                           pyarrow.map_(pyarrow.string(), pyarrow.string()))}),
         "row 1: the key 'k' is given twice"),
    ):  # fmt: skip
        write_arrow(path, table)
        with pytest.raises(InputError, match=f"rows.arrow: {words}"):
            list(read_rows(path, ""))


def test_an_array_in_pieces_is_read_as_strictly(tmp_path: Path) -> None:
    path = tmp_path / "rows.json.gz"
    pause = b" \n" * (1 << 20)
    path.write_bytes(gzip.compress(b"[" + pause + b'{"text": "a"}' + pause + b',{"text": "b"}' + pause + b"]\n", 1))
    assert list(read_rows(path, "")) == [{"text": "a"}, {"text": "b"}]
