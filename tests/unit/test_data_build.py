"""From files to datasets: what is in them, in which order, and what the report says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from job.data.build import Prepared, build_dataset
from job.data.worker.tokenise import pieces
from job.errors import InputError
from job.report.samples import write_samples
from job.source import Beside, FetchedSource, fetch_beside
from tests.data_rows import Row, byte_tokenizer_dir, fetched, job_spec, prepare, turns, write_rows
from tests.tiny import tiny_dir


def numbered(count: int, start: int = 0) -> list[Row]:
    return [{"prompt": "n", "completion": f" {i}"} for i in range(start, start + count)]


def numbers(dataset: object, prepared: Prepared) -> list[int]:
    return [int(prepared.tokenizer.decode(row["input_ids"], skip_special_tokens=True)[1:]) for row in dataset]  # type: ignore[attr-defined]


def test_columns_types_and_lengths(tmp_path: Path) -> None:
    import pyarrow

    prepared = prepare(tmp_path, numbered(5), "prompt_completion")
    assert prepared.train.column_names == ["input_ids", "labels", "weights"]
    assert prepared.train["weights"] == [[]] * len(prepared.train)
    assert {str(field.type) for field in prepared.train.data.schema} == {"list<item: int32>"}
    assert prepared.train.cache_files[0]["filename"].endswith("train.arrow")
    assert pyarrow.total_allocated_bytes() < 10 << 20
    assert all(len(row["input_ids"]) == len(row["labels"]) for row in prepared.train)


def test_slice_limit_and_weight(tmp_path: Path) -> None:
    prepared = prepare(
        tmp_path, numbered(20), "prompt_completion", source={"split": "train[10%:-5]", "limit": 4, "weight": 2.5}
    )
    found = Counter(numbers(prepared.train, prepared))
    assert set(found) == {2, 3, 4, 5}
    assert sorted(found.values()) == [2, 2, 3, 3]
    assert (prepared.report.train["rows"], prepared.report.train["sequences"]) == (4, 10)


def test_several_sources_keep_their_weights(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / "a.jsonl", numbered(10)), write_rows(tmp_path / "b.jsonl.gz", numbered(10, 100))]
    sources = [
        {"source": str(paths[0]), "format": "prompt_completion"},
        {"source": str(paths[1]), "format": "prompt_completion", "weight": 0.5},
    ]
    spec = job_spec(sources, shuffle=True)
    progress: list[tuple[int, int | None]] = []
    prepared = build_dataset(
        spec, fetched(spec, paths), None, tiny_dir(), tmp_path, lambda done, total: progress.append((done, total))
    )
    found = numbers(prepared.train, prepared)
    assert sorted(n for n in found if n < 100) == list(range(10))
    assert len([n for n in found if n >= 100]) == 5
    assert found != sorted(found)
    assert progress == [(10, 20), (20, 20)]


def test_several_files_of_one_source(tmp_path: Path) -> None:
    paths = (write_rows(tmp_path / "a.jsonl", numbered(10)), write_rows(tmp_path / "b.jsonl", numbered(10, 10)))
    spec = job_spec([{"source": str(tmp_path), "format": "prompt_completion", "split": "train[8:13]"}])
    source = FetchedSource(spec.data.train[0], "/data/train/0", paths, None, "")
    prepared = build_dataset(spec, [source], None, tiny_dir(), tmp_path, lambda done, total: None)
    assert numbers(prepared.train, prepared) == [8, 9, 10, 11, 12]


def test_the_same_spec_gives_the_same_data(tmp_path: Path) -> None:
    results = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        prepared = prepare(folder, numbered(600), "prompt_completion", held_out={"fraction": 0.1}, shuffle=True)
        results.append([numbers(prepared.train, prepared), numbers(prepared.held_out, prepared)])
    assert results[0] == results[1]
    assert [len(part) for part in results[0]] == [540, 60]
    assert set(results[0][0]) | set(results[0][1]) == set(range(600))


def test_copies_of_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, numbered(10) * 3, "prompt_completion", held_out={"rows": 4})
    train, held_out = numbers(prepared.train, prepared), numbers(prepared.held_out, prepared)
    assert len(held_out) == 4
    assert not set(train) & set(held_out)
    assert len(train) == 3 * (10 - len(set(held_out)))
    assert prepared.report.notes == [f"{26 - len(train)} training rows left out: exact copies of held-out rows"]
    assert prepared.report.train["duplicate_rows"] == len(train) * 2 // 3


def test_by_default_some_different_rows_are_held_out_with_their_copies(tmp_path: Path) -> None:
    """Each of 120 rows is there twice, so 120 are different: eight are not trained on, the same ones in every try."""
    held_out = []
    for name in ("first", "again"):
        folder = tmp_path / name
        folder.mkdir()
        prepared = prepare(folder, numbered(120) * 2, "prompt_completion", model=byte_tokenizer_dir(), held_out="auto")
        held_out.append(numbers(prepared.held_out, prepared))
    train = numbers(prepared.train, prepared)
    assert held_out[0] == held_out[1]
    assert len(set(held_out[0])) == 8
    assert Counter(train) == dict.fromkeys(set(range(120)) - set(held_out[0]), 2)
    words = "8 of 240 rows are held out by default, drawn by training.seed 3407"
    assert prepared.report.held_out_words == words
    assert prepared.report.notes[:2] == ["8 training rows left out: exact copies of held-out rows", words]
    asked = prepare(tmp_path, numbered(120), "prompt_completion", model=byte_tokenizer_dir(), held_out={"rows": 8})
    assert numbers(asked.held_out, asked) == held_out[0]
    assert asked.report.held_out_words == "8 of 120 rows are held out, drawn by training.seed 3407"


def test_where_nothing_is_held_out_that_is_said_or_refused(tmp_path: Path) -> None:
    rows = numbered(99) * 2
    few = prepare(tmp_path, rows, "prompt_completion", model=byte_tokenizer_dir(), held_out="auto")
    assert (few.held_out, len(few.train)) == (None, 198)
    why = "no rows are held out by default: 99 different rows are fewer than 100"
    assert (
        few.report.held_out_words
        == few.report.notes[0]
        == f"{why}; nothing is measured on rows that are not trained on"
    )
    with pytest.raises(InputError) as refused:
        prepare(tmp_path, rows, "prompt_completion", model=byte_tokenizer_dir(), held_out="auto", exact=2)
    assert str(refused.value) == (
        "/evaluation/exact_match_rows: exact match needs held-out rows (found 2); expected held-out rows. "
        f"{why}; say in data.held_out how many are to be"
    )


def test_held_out_sources_of_their_own(tmp_path: Path) -> None:
    train, test = write_rows(tmp_path / "a.jsonl", numbered(6)), write_rows(tmp_path / "b.jsonl", numbered(4, 4))
    own = {"sources": [{"source": str(test), "format": "prompt_completion"}]}
    spec = job_spec([{"source": str(train), "format": "prompt_completion"}], held_out=own, exact=3)
    assert spec.data.held_out is not None
    assert spec.data.held_out.sources is not None
    held_out = [FetchedSource(spec.data.held_out.sources[0], "/data/held_out/sources/0", (test,), None, "")]
    prepared = build_dataset(spec, fetched(spec, [train]), held_out, tiny_dir(), tmp_path, lambda done, total: None)
    assert numbers(prepared.held_out, prepared) == [4, 5, 6, 7]
    assert prepared.report.notes == ["2 of 4 held-out sequences are also in the training data"]
    assert [(q.text, q.reference) for q in prepared.exact_match] == [("n", " 4"), ("n", " 5"), ("n", " 6")]


def mixed(folder: Path, fraction: float, general: int, rows: int = 40) -> Prepared:
    """`rows` of the task and `general` ones from 100 on, of which the first four are measured too."""
    folder.mkdir()
    paths = [write_rows(folder / name, found) for name, found in (
        ("task.jsonl", numbered(rows)), ("replay.jsonl", numbered(general, 100)),
        ("measured.jsonl", numbered(4, 100)))]  # fmt: skip
    task, replayed, measured = ({"source": str(path), "format": "prompt_completion"} for path in paths)
    spec = job_spec([task], replay={"fraction": fraction, "sources": [replayed]},
                    evaluation={"forgetting": {"sources": [measured]}}, shuffle=True)  # fmt: skip
    return build_dataset(
        spec,
        fetched(spec, paths[:1]),
        None,
        byte_tokenizer_dir(),
        folder,
        lambda *_: None,
        beside=fetch_beside(spec, folder),
    )


def test_general_rows_are_mixed_in_by_the_seed_and_never_those_that_are_measured(tmp_path: Path) -> None:
    prepared = mixed(tmp_path / "first", 0.2, general=30)
    found = numbers(prepared.train, prepared)
    assert sorted(n for n in found if n < 100) == list(range(40))
    general = [n for n in found if n >= 100]
    assert len(general) == len(set(general)) == 10
    assert set(general) <= set(range(104, 130))
    assert found != sorted(found)
    assert max(map(found.index, general)) - min(map(found.index, general)) > 20, "among the task's, not after them"
    assert numbers(prepared.general, prepared) == [100, 101, 102, 103]
    report = prepared.report.document()
    assert (
        report["train"]["rows"],
        report["replay"]["rows"],
        report["general"]["rows"],
        report["general"]["also_trained"],
    ) == (40, 10, 4, 0)
    assert report["notes"] == [
        "4 general rows are not mixed in: exact copies of rows that are measured",
        "10 of the 50 training sequences of an epoch are general ones (data.replay)",
    ]
    again = mixed(tmp_path / "again", 0.2, general=30)
    assert (numbers(again.train, again), again.digest) == (found, prepared.digest)
    assert mixed(tmp_path / "other", 0.25, general=30).digest != prepared.digest


def test_too_few_general_rows_repeat(tmp_path: Path) -> None:
    prepared = mixed(tmp_path / "few", 0.5, general=20)
    found = Counter(n for n in numbers(prepared.train, prepared) if n >= 100)
    assert (sum(found.values()), set(found), set(found.values())) == (40, set(range(104, 120)), {2, 3})
    assert (
        prepared.report.notes[-1]
        == "40 of the 80 training sequences of an epoch are general ones (data.replay): 16 different ones, repeated"
    )
    with pytest.raises(InputError, match="no general rows are left to train on"):
        mixed(tmp_path / "none", 0.5, general=4)


@pytest.mark.parametrize(
    ("kind", "begins"), [("messages", "<|im_start|>user\n"), ("text", "What is the capital of Portugal?The capital")]
)
def test_the_general_rows_that_come_with_it_have_the_form_of_the_tasks(tmp_path: Path, kind: str, begins: str) -> None:
    rows = [{"messages": turns("Hello?", "Yes.")} if kind == "messages" else {"text": "Hello."}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    spec = job_spec(
        [{"source": str(path), "format": kind}], replay={"fraction": 0.99}, evaluation={"forgetting": {}}, shuffle=True
    )
    beside = fetch_beside(spec, tmp_path)
    assert len({source.sha256 for source in beside.sources}) == 2
    prepared = build_dataset(
        spec, fetched(spec, [path]), None, byte_tokenizer_dir(), tmp_path, lambda *_: None, beside=beside
    )
    assert (len(prepared.general), len(prepared.train)) == (64, 100)
    assert prepared.tokenizer.decode(prepared.general[0]["input_ids"]).startswith(begins)
    assert prepared.report.general is not None
    assert (prepared.report.general["dropped_rows"], prepared.report.general["truncated_rows"]) == (0, 0)


def test_general_rows_of_both_kinds_are_all_different() -> None:
    spec = job_spec(
        [{"source": "x", "format": "text"}], replay={"fraction": 0.1}, evaluation={"forgetting": {}}, shuffle=True
    )
    beside: Beside = fetch_beside(spec, Path())
    rows = [line for source in beside.sources for line in source.files[0].read_text("utf-8").splitlines()]
    assert len(rows) == len({json.loads(row)["instruction"] for row in rows}) == 128


def test_questions_use_the_chat_template(tmp_path: Path) -> None:
    rows = [{"messages": turns(f"q{i}", "first", "again", f"last {i}")} for i in range(5)]
    prepared = prepare(
        tmp_path, rows, "messages", prompts=["Hi?"], held_out={"rows": 2}, exact=2, chat_template="chatml"
    )
    [question] = prepared.questions
    assert question.text == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    asked = [{"role": "user", "content": "Hi?"}]
    assert question.input_ids == prepared.tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert question.reference is None
    for row, asked in zip(prepared.held_out, prepared.exact_match, strict=True):
        assert row["input_ids"][: len(asked.input_ids)] == asked.input_ids
        assert asked.reference == f"last {asked.text.partition('q')[2][0]}"
        assert asked.text.endswith("again<|im_end|>\n<|im_start|>assistant\n")


LETTERS = [{"prompt": f"{i}?", "completion": f" {'ABCD'[i % 4]}" if i else " none"} for i in range(9)]


def test_questions_with_choices_have_the_ids_of_each(tmp_path: Path) -> None:
    """As the row itself is tokenised; a reference that is none of them leaves its question without."""
    asked = {"metrics": ["choice"], "choices": ["A", "B", "C"]}
    prepared = prepare(tmp_path, LETTERS, "prompt_completion", held_out={"rows": 8}, exact=8, evaluation=asked)
    shares = [" none", *(f" {letter}" for letter in "BCDABCDA")]
    for row, question in zip(prepared.held_out, prepared.exact_match, strict=True):
        reference = question.reference
        assert reference in shares
        right = "ABC".find(str(reference).strip())
        assert len(question.choices) == (3 if right >= 0 else 0)
        if right >= 0:
            assert question.right == right
            assert question.shared == len(question.input_ids)
            assert row["input_ids"][:-1] == question.input_ids + question.choices[right]
            assert [prepared.tokenizer.decode(ids) for ids in question.choices] == [f" {letter}" for letter in "ABC"]
    left = sum(not question.choices for question in prepared.exact_match)
    assert 0 < left < 8
    assert f"{left} of 8 held-out answers do not count for choice: they are none of these" in prepared.report.notes


def test_choices_stand_where_the_chat_template_puts_answers(tmp_path: Path) -> None:
    rows = [{"messages": turns(f"q{i}", "AB"[i % 2])} for i in range(5)]
    asked = {"metrics": ["choice"], "choices": ["A", "B"]}
    prepared = prepare(
        tmp_path, rows, "messages", held_out={"rows": 2}, exact=2, chat_template="chatml", evaluation=asked
    )
    for row, question in zip(prepared.held_out, prepared.exact_match, strict=True):
        (token,), asked = question.choices[question.right], question.input_ids
        assert row["input_ids"][: len(asked) + 1] == [*asked, token]
        assert question.shared == len(asked)


OWN_CHOICES = [
    {"prompt": f"{i}?", "completion": " red", "options": ["red", f"blue {i}", "green"][: 2 + i % 2]} for i in range(4)
] + [
    {"prompt": "5?", "completion": " B", "options": {"A": "red", "B": "blue", "C": None}},
    {"prompt": "6?", "completion": " blue", "options": '["red", "blue"]'},
    {"prompt": "7?", "completion": " red", "options": ["blue", "green"]},
    {"prompt": "8?", "completion": " red", "options": "red, blue"},
    {"prompt": "9?", "completion": " red", "options": ["red", "red "]},
]


def test_each_row_may_have_choices_of_its_own(tmp_path: Path) -> None:
    """A list, an object of letters and texts, or JSON; what does not fit is left out, and counted."""
    asked = {"metrics": ["choice"], "choices_column": "options"}
    rows = [*OWN_CHOICES, OWN_CHOICES[0]]
    prepared = prepare(tmp_path, rows, "prompt_completion", held_out={"rows": 9}, exact=9, evaluation=asked)
    by_prompt = {question.text: question for question in prepared.exact_match}
    texts = {prompt: question.texts for prompt, question in by_prompt.items() if question.choices}
    wanted = {"0?": ["red", "blue 0"], "1?": ["red", "blue 1", "green"], "2?": ["red", "blue 2"],
              "3?": ["red", "blue 3", "green"], "5?": ["A", "B"], "6?": ["red", "blue"]}  # fmt: skip
    assert texts == {prompt: said for prompt, said in wanted.items() if prompt in by_prompt}
    for question in prepared.exact_match:
        if question.choices:
            decoded = [prepared.tokenizer.decode(ids) for ids in question.choices]
            assert decoded == [f" {text}" for text in question.texts]
            assert question.reference == decoded[question.right]
    left = len(prepared.exact_match) - sum(bool(question.choices) for question in prepared.exact_match)
    assert left >= 2
    assert any(
        note.startswith(f"{left} of 9 held-out answers do not count for choice") for note in prepared.report.notes
    )


@pytest.mark.parametrize(
    ("evaluation", "pointer", "hint"),
    [
        ({"metrics": ["choice"], "choices": ["x", "y"]}, "/evaluation/choices", "All 8 are none of these"),
        (
            {"metrics": ["regex"], "regex": "#### (.+)"},
            "/evaluation/regex",
            "All 8 have no place that the pattern finds",
        ),
        ({"metrics": ["exact_match", "tool_calls"]}, "/evaluation/metrics/1", "All 8 call no tool"),
        ({"metrics": ["json_fields"]}, "/evaluation/metrics/0", "All 8 are not JSON with fields"),
    ],
)
def test_a_metric_of_which_no_answer_counts_is_refused(
    tmp_path: Path, evaluation: dict[str, Any], pointer: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, LETTERS, "prompt_completion", held_out={"rows": 8}, exact=8, evaluation=evaluation)
    (fault,) = caught.value.faults
    assert (fault.where, fault.hint) == (pointer, hint)


def test_a_column_of_choices_that_no_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no held-out row has this column") as caught:
        prepare(tmp_path, LETTERS, "prompt_completion", held_out={"rows": 8}, exact=8,
                evaluation={"metrics": ["choice"], "choices_column": "option"})  # fmt: skip
    (fault,) = caught.value.faults
    assert (fault.where, fault.expected) == ("/evaluation/choices_column", "one of completion, prompt")


def test_answers_that_their_own_schema_refuses_are_counted(tmp_path: Path) -> None:
    asked = {"metrics": ["json_valid"], "json_schema": {"type": "object"}}
    rows = [{"prompt": str(i), "completion": '{"a": 1}' if i % 2 else "[1]"} for i in range(10)]
    prepared = prepare(tmp_path, rows, "prompt_completion", held_out={"rows": 9}, exact=9, evaluation=asked)
    wrong = sum(str(question.reference) == "[1]" for question in prepared.exact_match)
    assert f"{wrong} of 9 held-out answers are wrong themselves by json_schema" in prepared.report.notes


def test_the_report_counts(tmp_path: Path) -> None:
    rows = [
        {"messages": turns("a", "b")},
        {"messages": turns("a", "b")},
        {"messages": turns("a", "word " * 99)},
        {"messages": turns("alone")},
    ]
    prepared = prepare(tmp_path, rows, "messages", length=48, chat_template="chatml", max_untrained_fraction=0.5)
    lengths = [len(row["input_ids"]) for row in prepared.train]
    learned = [sum(label != -100 for label in row["labels"]) for row in prepared.train]
    assert prepared.report.train == {
        "read_rows": 4, "dropped_rows": 1, "dropped_reasons": {"no assistant turn": 1},
        "dropped_examples": ["rows.jsonl row 4: no assistant turn"], "rows": 3, "sequences": 3, "tokens": sum(lengths),
        "trained_tokens": sum(learned), "truncated_rows": 1,
        "truncated_examples": ["rows.jsonl row 3"], "duplicate_rows": 1,
        "longest_tokens": 48, "lengths": {"<=16": 2, "<=64": 1},
    }  # fmt: skip
    assert learned[:2] == [2, 2]
    assert lengths[2] == 48
    assert prepared.report.stop_token_ids == [2]
    assert json.loads(json.dumps(prepared.report.document()))["train"]["rows"] == 3
    assert prepared.report.totals()["tokens"] == sum(lengths)
    assert "1 row left out, no assistant turn: rows.jsonl row 4" in prepared.report.notes


def test_empty_answers_are_told_with_their_rows(tmp_path: Path) -> None:
    rows = [{"messages": turns(*talk)} for talk in [("a", "b"), *[("a", "")] * 7, ("a", "", "c", "d")]]
    prepared = prepare(tmp_path, rows, "messages", max_untrained_fraction=1.0)
    assert prepared.report.train["dropped_reasons"] == {"the answer is empty": 7}
    empty = ", ".join(f"rows.jsonl row {number}" for number in range(2, 7))
    assert f"7 rows left out, the answer is empty: {empty} and 2 more" in prepared.report.notes
    assert "1 answers are empty and not learned; the other answers of these conversations are" in prepared.report.notes


def test_samples_show_what_is_learned(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, [{"messages": turns("a ``` b", "yes")}] * 2, "messages", chat_template="chatml")
    text = write_samples(prepared, tmp_path / "report", count=1).read_text("utf-8")
    assert "<|im_start|>assistant\n⟦yes<|im_end|>⟧" in text
    assert "````text" in text
    assert text.count("## Sample") == 1
    assert "| + | 2 | `<\\|im_end\\|>` |" in text
    assert "The model learns what is between" in text
    compared = write_samples(prepared, tmp_path / "compared", learns=False).read_text("utf-8")
    assert "of the reference\n" in compared
    assert "is not learned" in compared


def test_a_template_whose_end_token_is_missing_ends_with_the_tokenizers_own(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, [{"messages": turns("a", "b")}], "messages", chat_template="llama-3")
    assert prepared.tokenizer.eos_token == "<|im_end|>"
    assert len(prepared.tokenizer) == 2048
    assert prepared.report.notes == [
        "chat template llama-3: <|eot_id|> is not in the vocabulary; turns end with <|im_end|>",
        "chat template llama-3: plain text in this vocabulary: <|start_header_id|>, <|end_header_id|>",
    ]


def test_ids_stay_where_they_are_when_the_end_token_changes(tmp_path: Path) -> None:
    from job.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_dir())
    before = tokenizer.get_vocab()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "base")
    prepared = prepare(tmp_path, [{"messages": turns("a", "b")}], "messages", tmp_path / "base", chat_template="chatml")
    assert (prepared.tokenizer.eos_token, prepared.tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert prepared.tokenizer.get_vocab() == before
    assert prepared.report.stop_token_ids == [2, 0]
    assert prepared.report.notes == ["eos_token is <|im_end|>, which ends a turn, instead of <|endoftext|>"]


def test_a_tokenizer_that_opens_texts_with_bos(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    from job.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_dir())
    tokenizer.bos_token = "<repo_name>"
    tokens = [("<repo_name>", 3), ("<|im_end|>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<repo_name> $A <|im_end|>", special_tokens=tokens
    )
    tokenizer.save_pretrained(tmp_path / "base")
    [row] = prepare(tmp_path, [{"text": "one"}], "text", tmp_path / "base").train
    assert row["input_ids"] == [3, *tokenizer("one", add_special_tokens=False)["input_ids"], 2]
    [row] = prepare(tmp_path, [{"prompt": "one", "completion": " two"}], "prompt_completion", tmp_path / "base").train
    assert (row["input_ids"][0], row["labels"][:2], row["labels"][-1]) == (3, [-100, -100], 2)
    chat = prepare(tmp_path, [{"messages": turns("a", "b")}], "messages", tmp_path / "base", chat_template="chatml")
    assert chat.tokenizer.decode(chat.train[0]["input_ids"]).startswith("<repo_name><|im_start|>user")
    assert chat.train[0]["input_ids"].count(3) == 1


def test_the_longest_row_fits_a_worker(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, [{"text": "many words " * 380_000}], "text", length=2048)
    assert prepared.report.train["tokens"] > 700_000


def test_a_stop_leaves_no_worker_behind(tmp_path: Path) -> None:
    from job.errors import Interrupted

    def stop(done: int, total: int | None) -> None:
        raise Interrupted("stop")

    path = write_rows(tmp_path / "rows.jsonl", numbered(5000))
    spec = job_spec([{"source": str(path), "format": "prompt_completion"}])
    before = set(psutil.Process().children())
    with pytest.raises(Interrupted):
        build_dataset(spec, fetched(spec, [path]), None, tiny_dir(), tmp_path, stop)
    assert set(psutil.Process().children()) == before


def test_jinja_from_the_spec_with_a_fixed_date(tmp_path: Path) -> None:
    template = (
        "{{ strftime_now('%d %b %Y') }}\n{% for m in messages %}"
        "{% generation %}{{ m.role }}: {{ m.content }}{% endgeneration %}"
        "{{ eos_token }}{% if m.role == 'user' %}{% continue %}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    prepared = prepare(tmp_path, [{"messages": turns("a", "b")}], "messages", chat_template=template)
    [row] = prepared.train
    text = prepared.tokenizer.decode(row["input_ids"])
    assert text == "26 Jul 2024\nuser: a<|im_end|>assistant: b<|im_end|>"
    assert prepared.tokenizer.decode([label for label in row["labels"] if label != -100]) == " b<|im_end|>"
    assert prepared.template == prepared.tokenizer.chat_template == template


def test_raw_text_needs_no_template(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, [{"text": "one two"}], "text", prompts=["one"])
    assert prepared.template == ""
    assert prepared.questions[0].text == "one"
    assert prepared.tokenizer.decode(prepared.train[0]["input_ids"]) == "one two<|im_end|>"


@pytest.mark.parametrize(
    ("tokens", "bounds"),
    [
        (0, []),
        (1, [(0, 1)]),
        (16, [(0, 16)]),
        (17, [(0, 15), (15, 17)]),
        (33, [(0, 16), (16, 31), (31, 33)]),
        (40, [(0, 16), (16, 32), (32, 40)]),
    ],
)
def test_pieces(tokens: int, bounds: list[tuple[int, int]]) -> None:
    assert list(pieces(tokens, 16)) == bounds


def test_a_text_file_holds_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prose.txt"
    path.write_bytes(b"\xef\xbb\xbfFirst line.\r\n\n  \nSecond line.")
    prepared = prepare(tmp_path, path, "text")
    assert [prepared.tokenizer.decode(row["input_ids"]) for row in prepared.train] == [
        "First line.<|im_end|>",
        "Second line.<|im_end|>",
    ]


def test_what_is_not_learned_as_it_is_in_the_rows_is_said_with_counts(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "b", "id": 7, "reasoning_content": "because"}
    rows = [
        {"messages": [{"role": "user", "content": "a <|im_end|>", "weight": 1}, answer]},
        {"messages": [{"role": "user", "content": "a"}, answer | {"mood": "glad"}]},
        {"messages": turns("word " * 99, "b")},
    ]
    prepared = prepare(tmp_path, rows, "messages", byte_tokenizer_dir(), length=64, max_untrained_fraction=0.5)
    assert prepared.report.notes == [
        "the chat template leaves the reasoning of 2 answers out: it is not learned",
        "1 messages are marked to be learned but are not answers; train_on responses learns answers alone",
        "keys of messages, calls and tools that nothing reads: 'id' (2), 'mood' (1)",
        "the text of 1 rows holds control tokens of the vocabulary, which the model reads as such: '<|im_end|>' (1)",
        "the answers of 1 rows are beyond model.max_seq_length 64; 517 would hold them",
    ]


def test_what_was_taken_for_granted_of_files_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(";prompt;chosen;rejected\n0;a;b;c\n1;d;e;f\n")
    source = {"columns": {"completion": "chosen"}}
    prepared = prepare(tmp_path, path, "prompt_completion", byte_tokenizer_dir(), source=source)
    assert prepared.report.notes == [
        "rows.csv: its first column has no name and is left out",
        "rows.csv: its columns are separated by ';'",
        "/data/train/0/source: column rejected of 2 rows is not used; "
        "chosen is learned (training.method dpo, with format preference, learns from both)",
    ]


SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("kind", "row", "unread"),
    [
        (
            "messages",
            {
                "messages": SAID,
                "weight": 1,
                "train": True,
                "note": "",
                "tools": None,
                "system": "s",
                "functions": None,
                "id": 7,
            },
            "'id' (1)",
        ),
        ("alpaca", {"instruction": "a", "output": "b", "input": "", "history": [["x", "y"]]}, "'history' (1)"),
        ("prompt_completion", {"prompt": "a ", "completion": "b", "system": "s", "label": True}, "'system' (1)"),
        ("prompt_completion", {"prompt": SAID[:1], "completion": SAID[1:], "system": "s", "tools": []}, ""),
        ("text", {"text": "a", "label": 1, "\u202e\x1b": 1}, r"'label' (1), '\u202e\x1b' (1)"),
        (
            "text",
            {"text": "a"} | {f"c{i}": i for i in range(10)},
            ", ".join(f"'c{i}' (1)" for i in range(8)) + " and 2 others",
        ),
        ("template", {"question": "a", "id": 1}, ""),
    ],
)
def test_columns_that_nothing_reads_are_named(kind: str, row: dict[str, object], unread: str, tmp_path: Path) -> None:
    source = {"template": {"user": "{{ question }}", "assistant": "b"}} if kind == "template" else None
    notes = prepare(tmp_path, [row], kind, byte_tokenizer_dir(), source=source).report.notes
    assert notes == ([f"/data/train/0/source: columns that nothing reads: {unread}"] if unread else [])


def test_bytes_that_are_not_text_are_refused_where_they_are_read_and_left_out_elsewhere(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    columns = {"text": [b"one", b"two"], "image": [{"bytes": b"\x89PNG\xff"}] * 2}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    prepared = prepare(tmp_path, path, "text", byte_tokenizer_dir())
    assert prepared.tokenizer.decode(prepared.train[0]["input_ids"]) == "one<|im_end|>"
    pyarrow.parquet.write_table(pyarrow.table(columns | {"text": [b"one", b"\xff"]}), path)
    with pytest.raises(InputError, match=r"rows.parquet row 2: text must be text, not bytes"):
        prepare(tmp_path, path, "text", byte_tokenizer_dir())
    template = {"user": "{{ image }}", "assistant": "x"}
    with pytest.raises(InputError, match="'image' is undefined; its columns are text"):
        prepare(tmp_path, path, "template", byte_tokenizer_dir(), source={"template": template})
