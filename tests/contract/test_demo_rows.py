"""The demo's rows: enough, made by the committed program, and no held-out row among those of training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.demo.make_rows import ACTIONS, HELD_OUT_PAIRS, ROOMS, answer, commands, make

DEMO = Path(__file__).parents[1] / "demo"


def rows(name: str) -> list[tuple[str, str]]:
    lines = [json.loads(line)["messages"] for line in (DEMO / f"{name}.jsonl").read_text("utf-8").splitlines()]
    assert all([turn["role"] for turn in turns] == ["user", "assistant"] for turns in lines)
    return [(turns[0]["content"], turns[1]["content"]) for turns in lines]


def test_the_files_are_what_the_program_writes() -> None:
    train, held_out = make()
    assert (DEMO / "train.jsonl").read_text("utf-8").splitlines() == train
    assert (DEMO / "held_out.jsonl").read_text("utf-8").splitlines() == held_out


def test_there_are_enough_rows_each_once() -> None:
    for name, least in (("train", 400), ("held_out", 50)):
        commands_said = [user for user, _ in rows(name)]
        assert len(commands_said) >= least
        assert len(set(commands_said)) == len(commands_said)


def test_no_combination_of_the_held_out_rows_is_trained_on() -> None:
    train, held_out = rows("train"), rows("held_out")
    assert {user for user, _ in train} & {user for user, _ in held_out} == set()
    assert {reply for _, reply in train} & {reply for _, reply in held_out} == set()


def test_some_held_out_rows_mix_an_opening_and_an_ending_as_no_training_row_does() -> None:
    def mixed(name: str) -> int:
        return sum(
            user.lower().startswith(opening) and user.rstrip(".?").endswith(ending)
            for user, _ in rows(name)
            for opening, ending in HELD_OUT_PAIRS
        )

    assert mixed("train") == 0
    assert mixed("held_out") >= 5


def test_the_vocabulary_is_closed_and_all_of_it_is_trained() -> None:
    every = {answer(command) for command in commands()}
    train = [reply for _, reply in rows("train")]
    assert set(train) | {reply for _, reply in rows("held_out")} <= every
    fields = [json.loads(reply) for reply in train]
    assert {field["room"] for field in fields} == set(ROOMS)
    assert {field["device"] for field in fields} == {device for devices, _, _ in ACTIONS.values() for device in devices}
    assert len({field["device"] for field in fields}) == 8
    assert min(Counter(field["action"] for field in fields).values()) >= 60


def test_answers_are_compact_json_with_the_keys_in_one_order() -> None:
    for user, reply in rows("train") + rows("held_out"):
        fields = json.loads(reply)
        assert reply == json.dumps(fields, separators=(",", ":"))
        assert list(fields) == ["device", "room", "action", "value"][: len(fields)]
        assert str(fields.get("value", "")) in user
        assert fields["room"] in user
        assert fields["device"] in user
