"""The rows that everything that is delivered is measured on, and what gates may be about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from job.export.rows import asked_questions, calibration_rows, compared_rows
from job.gguf.types import TYPES
from job.spec import job_schema
from tests.specs import faults_with, parse

IGNORED = -100


def row(length: int, first_learned: int, start: int = 0) -> dict[str, list[int]]:
    """A row of `length` tokens of which those from number `first_learned` on are learned."""
    ids = list(range(start, start + length))
    return {"input_ids": ids, "labels": [IGNORED] * first_learned + ids[first_learned:]}


def prepared(held_out: list[Any] | None, train: list[Any] | None = None) -> Any:
    return SimpleNamespace(held_out=held_out, train=train or [row(4, 2)])


HELD_OUT = [row(10, 6, 100 * i) for i in range(20)]


def test_all_held_out_rows_are_compared_where_they_are_few() -> None:
    found = compared_rows(prepared(HELD_OUT), 200, 1)
    assert found.rows == HELD_OUT
    assert found.document() == {"of": "held_out", "rows": 20, "tokens": 200, "learned_tokens": 80, "all": True}


def test_else_as_many_as_fit_drawn_by_the_seed_and_the_last_one_cut() -> None:
    found = compared_rows(prepared(HELD_OUT), 38, 1)
    assert found.document() == {"of": "held_out", "rows": 4, "tokens": 38, "learned_tokens": 14, "all": False}
    assert [r["input_ids"] in [h["input_ids"] for h in HELD_OUT] for r in found.rows] == [True, True, True, False]
    assert found == compared_rows(prepared(HELD_OUT), 38, 1)
    assert found.ids != compared_rows(prepared(HELD_OUT), 38, 2).ids
    assert found.ids != HELD_OUT[:4], "not the first ones"


def test_a_cut_row_without_a_learned_token_is_left_out() -> None:
    """The mean over none is not a number."""
    assert compared_rows(prepared(HELD_OUT), 36, 1).document()["rows"] == 3
    assert compared_rows(prepared(HELD_OUT), 37, 1).document()["rows"] == 4


def test_learned_are_the_places_before_a_learned_token() -> None:
    found = compared_rows(prepared([row(4, 2, 10), row(3, 0, 20)]), 100, 1)
    ids = [token for ids in found.ids for token in ids]
    assert found.learned == [1, 2, 4, 5]
    assert [ids[place + 1] for place in found.learned] == [12, 13, 21, 22]


@pytest.mark.parametrize("tokens", [16, 17, 64])
def test_where_every_answer_comes_after_so_many_tokens_a_part_with_one_is_taken(tokens: int) -> None:
    found = compared_rows(prepared([row(500, 400), row(400, 300, 1000)]), tokens, 1)
    (part,) = found.rows
    assert len(part["input_ids"]) == tokens
    assert part["input_ids"][0] >= 1000, "of the row whose answer begins first"
    assert len(found.learned) >= tokens // 2
    assert not found.whole


def test_without_held_out_rows_training_rows_are_compared() -> None:
    found = compared_rows(prepared(None, [row(4, 2), row(5, 2)]), 100, 1)
    assert found.document() == {"of": "train", "rows": 2, "tokens": 9, "learned_tokens": 5, "all": False}


def test_channels_are_weighed_on_the_first_training_rows() -> None:
    assert calibration_rows(prepared(None, [row(4, 2), row(5, 2, 10), row(5, 2)]), 7) == [[0, 1, 2, 3], [10, 11, 12]]


def test_a_few_prompts_and_questions_are_asked_of_everything() -> None:
    prompts, rows = asked_questions(SimpleNamespace(questions=list(range(9)), exact_match=list(range(900))))  # type: ignore[arg-type]
    assert (len(prompts), len(rows)) == (4, 64)


# -------------------------------------------------------------------------------------------------------- the spec

HELD = {"/data/held_out": {"rows": 4}}
ASKED = {"/export": {"merged": ["16bit"], "gguf": ["q8_0"]}, **HELD}


def test_a_gate_may_be_about_everything_that_can_be_made() -> None:
    names = job_schema()["definitions"]["evaluation"]["properties"]["gates"]["items"]["properties"]["of"]["items"][
        "enum"
    ]
    assert set(names) == {"trained", "adapter", "merged", "merged_4bit", "lora_gguf", "gguf"} | {
        f"gguf-{name}" for name in TYPES
    }


@pytest.mark.parametrize("of", [["trained"], ["adapter", "merged"], ["gguf"], ["gguf-q8_0", "merged"]])
def test_a_gate_about_what_is_made(of: list[str]) -> None:
    spec = parse({"/evaluation/gates": [{"metric": "perplexity", "at_most": 9, "of": of}], **ASKED})
    assert spec.evaluation.gates[0].of == tuple(of)


@pytest.mark.parametrize(
    ("of", "changes", "place"),
    [
        (["merged_4bit"], ASKED, 0),
        (["trained", "gguf-q4_k_m"], ASKED, 1),
        (["lora_gguf"], ASKED, 0),
        (["gguf"], HELD, 0),
        (["merged"], HELD, 0),
        (["adapter"], {"/model/precision": "full", **HELD}, 0),
    ],
)
def test_a_gate_about_what_is_not_made_is_refused(of: list[str], changes: dict[str, Any], place: int) -> None:
    (fault,) = faults_with({"/evaluation/gates": [{"metric": "perplexity", "at_most": 9, "of": of}], **changes})
    assert (fault.where, fault.found) == (f"/evaluation/gates/0/of/{place}", f'"{of[place]}"')
    assert "trained" in fault.expected


def test_a_gate_that_only_says_what_it_is_about_has_no_bound() -> None:
    (fault,) = faults_with({"/evaluation/gates": [{"metric": "perplexity", "of": ["trained"]}], **ASKED})
    assert fault.message == "this gate has no bound"


@pytest.mark.parametrize(
    ("precision", "onto", "refused"),
    [("4bit", "trained", 0), ("4bit", "original", 0), ("16bit", "trained", 1), ("8bit", "original", 0),
     ("8bit", "trained", 1), ("full", "original", 1), ("full", "auto", 0)],
)  # fmt: skip
def test_what_can_be_merged_onto(precision: str, onto: str, refused: int) -> None:
    faults = faults_with({"/model/precision": precision, "/export/merge_onto": onto})
    assert [fault.where for fault in faults] == ["/export/merge_onto"] * refused
