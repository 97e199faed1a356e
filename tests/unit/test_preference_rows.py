"""Rows of pairs of answers, or of labelled ones: forms, refusals. Beside TRL: tests/flow/test_preference.py."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from job.data.worker.messages import RowFault
from job.data.worker.shape import Columns, shape
from job.errors import InputError
from job.evaluation.margins import equal_margins
from tests.data_rows import SHARED, Row, byte_tokenizer_dir, prepare, turns

QUESTION, GOOD, BAD = "Say hi.", "Hello!", "No."
HH = "\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Say hi.\n\nAssistant: "


def answer(text: str) -> Row:
    return {"role": "assistant", "content": text}


def pairs(folder: Path, rows: Any, model: Path | None = None, **spec: Any) -> Any:
    return prepare(folder, rows, "preference", model or byte_tokenizer_dir(), method="dpo", **spec)


def shown(prepared: Any, row: Row) -> tuple[str, str]:
    """Both answers with their prompts, the learned part in ⟦ ⟧."""

    def text(part: str) -> str:
        ids, labels = row[f"{part}input_ids"], row[f"{part}labels"]
        first = next(index for index, label in enumerate(labels) if label != -100)
        learned = [label for label in labels if label != -100]
        assert ids[first : first + len(learned)] == learned
        return f"{prepared.tokenizer.decode(ids[:first])}⟦{prepared.tokenizer.decode(learned)}⟧"

    return text(""), text("rejected_")


PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
EARLIER = "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
SYSTEM = "<|im_start|>system\nBe kind.<|im_end|>\n"
HUMAN = {"from": "human", "value": QUESTION}
FORMS: dict[str, tuple[Row, dict[str, Any], str]] = {
    "messages": ({"prompt": turns(QUESTION), "chosen": [answer(GOOD)], "rejected": [answer(BAD)]}, {}, PROMPT),
    "a message": ({"prompt": turns(QUESTION), "chosen": answer(GOOD), "rejected": answer(BAD)}, {}, PROMPT),
    "text after messages": ({"prompt": turns(QUESTION), "chosen": GOOD, "rejected": BAD}, {}, PROMPT),
    "messages after text": ({"prompt": QUESTION, "chosen": [answer(GOOD)], "rejected": [answer(BAD)]}, {}, PROMPT),
    "whole conversations": ({"chosen": turns("One?", "Two.", QUESTION, GOOD),
                             "rejected": turns("One?", "Two.", QUESTION, BAD)}, {},
                            EARLIER + PROMPT),
    "and their prompt as text": ({"prompt": QUESTION, "chosen": turns(QUESTION, GOOD),
                                  "rejected": turns(QUESTION, BAD)}, {}, PROMPT),
    "and their prompt as messages": ({"prompt": turns(QUESTION), "chosen": turns(QUESTION, GOOD),
                                      "rejected": turns(QUESTION, BAD)}, {},
                                     PROMPT),
    "conversations": ({"conversations": [HUMAN], "chosen": {"from": "gpt", "value": GOOD},
                       "rejected": {"from": "gpt", "value": BAD}, "system": "Be kind."}, {}, SYSTEM + PROMPT),
    "instruction": ({"instruction": "Say hi.", "input": "", "chosen": GOOD, "rejected": BAD}, {}, PROMPT),
    "instruction and input": ({"instruction": "One?", "input": "Two.", "chosen": GOOD, "rejected": BAD}, {},
                              "<|im_start|>user\nOne?\n\nTwo.<|im_end|>\n<|im_start|>assistant\n"),
    "renamed": ({"question": QUESTION, "yes": GOOD, "no": BAD},
                {"instruction": "question", "chosen": "yes", "rejected": "no"}, PROMPT),
    "transcripts": ({"chosen": HH + GOOD, "rejected": HH + BAD}, {}, EARLIER + PROMPT),
    "JSON in a cell": ({"prompt": json.dumps(turns(QUESTION)), "chosen": json.dumps([answer(GOOD)]),
                        "rejected": json.dumps([answer(BAD)])},
                       {}, PROMPT),
}  # fmt: skip


def test_the_forms_of_rows(tmp_path: Path) -> None:
    """All of them in one file; the columns that a form has under other names do not matter to the others."""
    renamed = {own: other for _, columns, _ in FORMS.values() for own, other in columns.items()}
    plain = [form for form in FORMS.values() if not form[1]]
    for folder, forms, columns in (
        ("plain", plain, {}),
        ("renamed", [form for form in FORMS.values() if form[1]], renamed),
    ):
        (tmp_path / folder).mkdir()
        prepared = pairs(tmp_path / folder, [row for row, _, _ in forms], source={"columns": columns})
        assert len(prepared.train) == len(forms)
        for found, (_, _, prompt) in zip(prepared.train, forms, strict=True):
            assert shown(prepared, found) == (f"{prompt}⟦{GOOD}<|im_end|>⟧", f"{prompt}⟦{BAD}<|im_end|>⟧")
        sides = [[len(row[f"{part}input_ids"]) for row in prepared.train] for part in ("", "rejected_")]
        assert prepared.report.train["tokens"] == sum(map(sum, sides))
        assert prepared.report.train["longest_tokens"] == max(map(max, sides))
        assert prepared.report.notes == []


def test_raw_text_has_no_template(tmp_path: Path) -> None:
    prepared = pairs(tmp_path, [{"prompt": "Q: ", "chosen": GOOD, "rejected": BAD, "system": "Be kind."}])
    assert shown(prepared, prepared.train[0]) == (f"Q: ⟦{GOOD}<|im_end|>⟧", f"Q: ⟦{BAD}<|im_end|>⟧")
    assert prepared.template == ""
    assert any("columns that nothing reads: 'system' (1)" in note for note in prepared.report.notes)


def test_an_answer_may_call_tools(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "hi", "arguments": "{}"}}]}
    tools = [{"name": "hi"}]
    chosen = [call, {"role": "tool", "content": "hi"}, answer(GOOD)]
    row = {"prompt": turns(QUESTION), "chosen": chosen, "rejected": [answer(BAD)], "tools": tools}
    prepared = pairs(tmp_path, [row], chat_template="qwen")
    learned = prepared.tokenizer.decode([label for label in prepared.train[0]["labels"] if label != -100])
    assert learned == f'<tool_call>\n{{"name": "hi", "arguments": {{}}}}\n</tool_call><|im_end|>{GOOD}<|im_end|>'


def test_questions_of_exact_match_are_the_chosen_answers(tmp_path: Path) -> None:
    rows = [{"prompt": turns(f"{number}?"), "chosen": f"yes {number}", "rejected": "no"} for number in range(6)]
    prepared = pairs(tmp_path, rows, held_out={"rows": 2}, exact=2)
    assert len(prepared.held_out) == 2
    assert [question.reference for question in prepared.exact_match] == [
        f"yes {q.text.split('?')[0][-1]}" for q in prepared.exact_match
    ]


@pytest.mark.skipif(not (SHARED / "hh_rlhf_harmless_base.jsonl").is_file(), reason="the shared rows are not here")
def test_real_transcripts(tmp_path: Path) -> None:
    prepared = pairs(tmp_path, SHARED / "hh_rlhf_harmless_base.jsonl", length=100_000)
    counted = prepared.report.train
    assert (counted["rows"], counted["dropped_rows"], counted["dropped_reasons"]) == (
        299,
        1,
        {"the answer is empty": 1},
    )
    raw = [json.loads(line) for line in (SHARED / "hh_rlhf_harmless_base.jsonl").read_text("utf-8").splitlines()]
    for row, original in zip(prepared.train, [row for number, row in enumerate(raw, 1) if number != 145], strict=True):
        for part, key in (("", "chosen"), ("rejected_", "rejected")):
            learned = prepared.tokenizer.decode([label for label in row[f"{part}labels"] if label != -100])
            assert learned == original[key].rpartition("\n\nAssistant:")[2].strip() + "<|im_end|>"


# ------------------------------------------------------------------------------------------- what is refused

ROW = {"prompt": turns(QUESTION), "chosen": GOOD, "rejected": BAD}
REFUSED: dict[str, tuple[Row, str]] = {
    "other prompts": ({"chosen": turns("One?", GOOD), "rejected": turns("Two?", BAD)},
                      "chosen and rejected do not have the same prompt: "
                      "they part before message 1 of chosen, which is of the role user"),
    "other questions later": ({"chosen": turns("a", "b", "c", GOOD), "rejected": turns("a", "x", "c", BAD)},
                              "part before message 3 of chosen, which is of the role user"),
    "transcripts of two prompts": ({"chosen": HH + GOOD, "rejected": HH.replace("One", "Two") + BAD},
                                   "do not have the same prompt"),
    "no second answer": ({"chosen": turns("a", "b"), "rejected": turns("a")}, "rejected has no answer of its own"),
    "text without a prompt": ({"chosen": GOOD, "rejected": BAD},
                              "chosen is text, and there is no a prompt in prompt"),
    "an answer without a prompt": ({"chosen": [answer(GOOD)], "rejected": [answer(BAD)]},
                                   "begins with an answer, and there is no prompt"),
    "two prompts": (ROW | {"instruction": "x"}, "the prompt is in prompt and in instruction"),
    "another prompt": (ROW | {"prompt": "Bye?", "chosen": turns(QUESTION, GOOD)},
                       "chosen is a whole conversation that does not begin"),
    "no text": (ROW | {"chosen": 7}, "chosen must be text or a list of messages, not int"),
    "an empty list": (ROW | {"rejected": []}, "rejected is an empty list"),
    "a null answer": (ROW | {"rejected": None}, "rejected must be text or a list of messages, not null"),
    "an unknown role": (ROW | {"chosen": [{"role": "narrator", "content": "x"}]},
                        "chosen message 1 has the unknown role 'narrator'"),
    "a user's answer": (ROW | {"chosen": [answer(GOOD), *turns("thanks")]},
                        "before message 3 of chosen, which is of the role user"),
    "no instruction": ({"instruction": " ", "input": "", "chosen": GOOD, "rejected": BAD},
                       "instruction and input are empty"),
    "a label": (ROW | {"label": False}, "label is False"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_is_refused(name: str) -> None:
    row, says = REFUSED[name]
    with pytest.raises(RowFault, match=re.escape(says)):
        shape("preference", row, Columns({}))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_answer_that_is_compared_is_not_learned_in_part(side: str) -> None:
    row = {"prompt": turns(QUESTION), "chosen": [answer(GOOD)], "rejected": [answer(BAD)]}
    row[side] = [{**answer("x"), "weight": 0.5}]
    with pytest.raises(RowFault, match=r"message 2: a weight of 0.5 is for training.method sft; .*write 0 or 1"):
        shape("preference", row, Columns({}))


def test_a_refusal_names_the_row(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        pairs(tmp_path, [ROW, REFUSED["other prompts"][0]])
    assert caught.value.faults[0].where == "/data/train/0/source"
    assert "rows.jsonl row 2: chosen and rejected do not have the same prompt" in str(caught.value)


def test_a_template_that_writes_the_prompt_in_two_ways_is_refused(tmp_path: Path) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.role + ': ' + m.content }}<|im_end|>{% endfor %}"
    longer = ROW | {"chosen": [answer("Wait."), {"role": "tool", "content": "x"}, answer(GOOD)]}
    assert len(pairs(tmp_path, [ROW], chat_template=template).train) == 1
    with pytest.raises(
        InputError, match="row 2: the chat template writes the prompt of chosen and rejected in two ways"
    ):
        pairs(tmp_path, [ROW, longer], chat_template=template)


def test_other_columns_are_answered_with_the_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The columns fit format preference"):
        prepare(tmp_path, [{"chosen": turns("a", "b"), "rejected": turns("a", "c")}], "messages", byte_tokenizer_dir())
    with pytest.raises(InputError, match=r"expected chosen, rejected\. The columns fit format messages"):
        pairs(tmp_path, [{"messages": turns("a", "b")}])
    with pytest.raises(InputError, match="The columns fit format preference"):
        prepare(tmp_path, [ROW], "kto", byte_tokenizer_dir(), method="kto")


# ------------------------------------------------------------------------------------- what is counted and cut


def test_equal_answers_are_counted_and_refused_beyond_the_limit(tmp_path: Path) -> None:
    good = [ROW | {"chosen": f"{GOOD} {number}"} for number in range(19)]
    prepared = pairs(tmp_path, [*good, ROW | {"rejected": GOOD}])
    assert prepared.report.train["dropped_reasons"] == {"chosen and rejected are the same": 1}
    assert prepared.report.notes == ["1 row left out, chosen and rejected are the same: rows.jsonl row 20"]
    with pytest.raises(InputError) as caught:
        pairs(tmp_path, [*good, *[ROW | {"rejected": GOOD}] * 2])
    assert caught.value.faults[0].where == "/data/max_untrained_fraction"
    assert "rows.jsonl row 20, rows.jsonl row 21: chosen and rejected are the same (found 2 of 21 rows)" in str(
        caught.value
    )


@pytest.mark.parametrize("rejected", [f"{GOOD} ", f"  {GOOD}", f"{GOOD[:2]} {GOOD[2:]}"])
def test_answers_that_differ_in_white_space_alone_are_counted(rejected: str, tmp_path: Path) -> None:
    prepared = pairs(tmp_path, [ROW, ROW | {"rejected": rejected}])
    assert len(prepared.train) == 2
    assert prepared.report.notes == [
        "chosen and rejected of 1 rows differ in white space alone: that is what is learned of them"
    ]


def test_texts_with_labels_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": "Q: ", "completion": f"A {number}.", "label": True, "other": "x"} for number in range(2)]
    prepared = prepare(tmp_path, rows, "kto", byte_tokenizer_dir(), method="kto")
    assert prepared.report.notes == [
        "/data/train/0/source: columns that nothing reads: 'other' (2)",
        "all 2 answers that are trained on are called good: every answer is made likelier, and none is preferred to "
        "another, as that needs both kinds",
        "2 answers are called good",
    ]


@pytest.mark.parametrize("labels", [(True, True), (True, False), (False, False)])
def test_held_out_answers_of_one_kind_are_told(labels: tuple[bool, bool], tmp_path: Path) -> None:
    """Nothing is preferred to anything then."""
    rows = [
        {"prompt": f"Q{number}: ", "completion": f"A {number}.", "label": labels[number % 2]} for number in range(8)
    ]
    held_out = {"rows": 6}
    prepared = prepare(tmp_path, rows, "kto", byte_tokenizer_dir(), method="kto", held_out=held_out)
    told = [note for note in prepared.report.notes if note.startswith("all 6 held-out answers are called")]
    assert len(told) == (labels[0] == labels[1])
    trained = [note for note in prepared.report.notes if note.startswith("all 2 answers that are trained on")]
    assert len(trained) == (len(set(map(tuple, prepared.train["desirable"]))) == 1)
    assert all(("called good: " if labels[0] else "called bad: ") in note for note in told)
    assert (equal_margins(prepared.held_out) == []) == bool(told)


def test_answers_are_cut_on_the_right(tmp_path: Path) -> None:
    """One that is wholly beyond the length, or differs only beyond it, teaches nothing."""
    cut = ROW | {"chosen": "word " * 99}
    alike = ROW | {"chosen": "word " * 99 + "a", "rejected": "word " * 99 + "b"}
    beyond = ROW | {"prompt": turns("word " * 99)}
    prepared = pairs(tmp_path, [cut, alike, beyond], length=128, max_untrained_fraction=1)
    assert [len(row["input_ids"]) for row in prepared.train] == [128]
    counted = prepared.report.train
    assert counted["dropped_reasons"] == {
        "chosen and rejected are the same within max_seq_length": 1,
        "the answer is beyond max_seq_length": 1,
    }
    assert (counted["truncated_rows"], counted["longest_tokens"]) == (1, 128)


@pytest.mark.parametrize(("row", "reason"), [
    (ROW | {"rejected": " "}, "the answer is empty"),
    (ROW | {"chosen": [answer(GOOD) | {"weight": 0}]}, "it is marked not to be learned"),
    ({"prompt": "Q", "chosen": "", "rejected": "x"}, "the answer is empty"),
])  # fmt: skip
def test_a_pair_that_lacks_an_answer_is_left_out(row: Row, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no row has a token to learn: rows.jsonl row 1: {reason}"):
        pairs(tmp_path, [row])


# ------------------------------------------------------------------------------------------ answers with labels


def labelled(folder: Path, rows: Any, **spec: Any) -> Any:
    return prepare(folder, rows, "kto", byte_tokenizer_dir(), method="kto", **spec)


LABELLED: dict[str, tuple[Row, dict[str, Any], str]] = {
    "messages": ({"messages": turns("One?", "Two.", QUESTION, GOOD), "label": True}, {}, EARLIER + PROMPT),
    "prompt and completion": ({"prompt": turns(QUESTION), "completion": [answer(GOOD)], "label": 1}, {}, PROMPT),
    "conversations": (
        {"conversations": [HUMAN, {"from": "gpt", "value": GOOD}], "kto_tag": True},
        {"label": "kto_tag"},
        PROMPT,
    ),
    "instruction": ({"instruction": QUESTION, "output": GOOD, "label": "True"}, {}, PROMPT),
    "text": ({"prompt": "Q: ", "completion": GOOD, "label": 1.0}, {}, "Q: "),
}


@pytest.mark.parametrize("columns", [{}, {"label": "kto_tag"}], ids=["label", "kto_tag"])
def test_the_forms_of_answers_with_labels(columns: dict[str, str], tmp_path: Path) -> None:
    forms = [(row, prompt) for row, own, prompt in LABELLED.values() if own == columns]
    label = columns.get("label", "label")
    prepared = labelled(
        tmp_path,
        [row | {label: value} for row, _ in forms for value in (row[label], False)],
        source={"columns": columns},
    )
    for found, (number, good) in zip(prepared.train, product(range(len(forms)), (1, 0)), strict=True):
        first = next(index for index, label in enumerate(found["labels"]) if label != -100)
        assert prepared.tokenizer.decode(found["input_ids"][:first]) == forms[number][1]
        assert prepared.tokenizer.decode([label for label in found["labels"] if label != -100]) == f"{GOOD}<|im_end|>"
        assert found["desirable"] == [good]
    assert {f"{len(forms)} answers are called good", f"{len(forms)} answers are called bad"} <= set(
        prepared.report.notes
    )


@pytest.mark.parametrize(("row", "says"), [
    ({"messages": turns("a", "b"), "label": "maybe"}, "label must be true or false, 1 or 0, not 'maybe'"),
    ({"messages": turns("a", "b"), "label": 2}, "label must be true or false, 1 or 0, not 2"),
    ({"messages": turns("a", "b"), "label": None}, "label must be true or false, 1 or 0, not None"),
    ({"messages": turns("a", "b")}, "column label is missing"),
    ({"label": True, "text": "a"}, "it is in none of them"),
    ({"label": True, "messages": turns("a", "b"), "prompt": "a", "completion": "b"},
     "it is in messages, prompt_completion"),
])  # fmt: skip
def test_an_answer_with_a_label_is_refused(row: Row, says: str) -> None:
    with pytest.raises(RowFault, match=re.escape(says)):
        shape("kto", row, Columns({}))


def test_only_good_answers_are_references(tmp_path: Path) -> None:
    rows = [{"messages": turns(f"{number}?", f"yes {number}"), "label": number % 2 == 0} for number in range(8)]
    prepared = labelled(tmp_path, rows, held_out={"rows": 6}, exact=6)
    good = sum(row["desirable"][0] for row in prepared.held_out)
    assert 0 < len(prepared.exact_match) == good < 6
    assert all(int(question.reference.split()[1]) % 2 == 0 for question in prepared.exact_match)


def test_a_label_by_another_name_is_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape('Write "columns": {"label": "kto_tag"}')):
        labelled(tmp_path, [{"messages": turns("a", "b"), "kto_tag": True}])
