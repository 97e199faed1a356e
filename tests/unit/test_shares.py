"""Several processes share out what is measured: every row once, evenly, and together what one process finds."""

from __future__ import annotations

import json
import math
import random
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

import job.evaluation.generate as generate
from job.data.build import Question
from job.errors import GateError
from job.evaluation.assess import Assessment, Found, ToMeasure, assess
from job.evaluation.shares import Share, by_rows, together
from job.export.gguf.stage import in_turn
from job.host.conversation import END, Answering, Asking
from job.host.device import CARDS
from job.host.records import build, encode
from job.plan.require import cards_of_run
from tests.specs import parse
from tests.unit.test_evaluate import model, rows

__all__ = ["model"]  # a fixture
PAD, STOP = 0, 49


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_batch_is_one_process_s_and_their_costs_are_even(count: int) -> None:
    rng = random.Random(3)
    costs = [rng.lognormvariate(5, 1) for _ in range(40)]
    batches = by_rows(40, 1)
    shares = [Share(number, count).of(batches, lambda batch: costs[batch[0]]) for number in range(count)]
    assert sorted(number for share in shares for (number,) in share) == list(range(40))
    assert all(share == sorted(share) for share in shares), "in their order"
    loads = [sum(costs[number] for (number,) in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs)
    assert max(loads) < 1.35 * sum(costs) / count


def test_fewer_batches_than_processes_leave_some_without() -> None:
    assert [Share(number, 3).of([[0, 1], [2]], len) for number in range(3)] == [[[0, 1]], [[2]], []]
    assert together([[1.0, None, None], [None, None, 2.0]]) == [1.0, None, 2.0]


def prepared(held_out: int, asked: int) -> Any:
    """Rows, questions with two choices, and a tokenizer that speaks in numbers."""
    many = rows(held_out + asked)
    questions = [
        Question(
            "", row["input_ids"], "1", [[number % 40 + 1], [number % 40 + 2, 3]], number % 2, len(row["input_ids"])
        )
        for number, row in enumerate(many[held_out:])
    ]
    tokenizer = SimpleNamespace(pad_token_id=PAD, decode=lambda ids, **_: " ".join(map(str, ids)))
    return SimpleNamespace(
        held_out=datasets.Dataset.from_list(many[:held_out]),
        general=datasets.Dataset.from_list(many[:5]),
        questions=[Question("", [1, 2, 3], None), Question("", [4], None)],
        exact_match=questions,
        tokenizer=tokenizer,
        report=SimpleNamespace(stop_token_ids=[STOP]),
    )


class NoBar:
    total: int | None = None

    def __init__(self) -> None:
        self.done = 0

    def update(self, done: int, **_: Any) -> None:
        self.done = done


EVALUATION = {"/evaluation": {"prompts": ["a", "b"], "exact_match_rows": 12, "max_new_tokens": 6,
                              "metrics": ["exact_match", "choice"], "choices": ["x", "y"]},
              "/training/eval_batch_size": 2}  # fmt: skip


@pytest.mark.parametrize("count", [2, 3])
def test_shares_are_together_what_one_process_finds(model: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last place, as the batches are the same; each does some of everything, and hears its own answers."""
    monkeypatch.setattr(generate, "GENERATION_BATCH_TOKENS", 60)
    spec, data = parse(EVALUATION), prepared(11, 12)
    asked = ToMeasure(rows(7), rows(4))

    def found(share: Share) -> tuple[Found, list[str]]:
        heard: list[str] = []
        part = assess(model, data, spec, asked, NoBar(), lambda _, text: heard.append(text), share)  # type: ignore[arg-type]
        return build(Found, json.loads(encode(part))), heard

    whole, _ = found(Share())
    parts = [found(Share(number, count)) for number in range(count)]
    for name in ("losses", "general", "choices", "said"):
        own = [sum(each is not None for each in getattr(part, name)) for part, _ in parts]
        assert sum(own) == len(getattr(whole, name)) == sum(each is not None for each in getattr(whole, name)), name
        assert min(own) > 0, (name, own)
    assert all(1 <= len(heard) <= 3 for _, heard in parts)
    one, several = (Assessment.of(each, data, spec, asked) for each in (whole, Found.of([part for part, _ in parts])))
    assert several.rows == one.rows
    assert (several.row_answers, several.answers) == (one.row_answers, one.answers)
    assert several.figures == one.figures
    assert set(one.figures) == {"held_out_loss", "perplexity", "general_loss", "exact_match", "choice"}
    assert (several.compared, several.general) == pytest.approx((one.compared, one.general), rel=1e-12)
    assert one.compared is not None
    assert 0 < one.compared < 2 * math.log(50)


def test_the_time_for_answers_holds_in_each_share(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no process has answered in time is left out; the spec's prompts are answered in any case."""
    monkeypatch.setattr(generate, "GENERATION_BATCH_TOKENS", 60)
    spec, data, asked = parse(EVALUATION | {"/evaluation/max_minutes": 1e-9}), prepared(2, 12), ToMeasure(None, None)
    parts = [assess(model, data, spec, asked, NoBar(), share=Share(number, 2)) for number in (0, 1)]  # type: ignore[arg-type]
    late = Assessment.of(Found.of(parts), data, spec, asked)
    assert late.unanswered == list(range(12))
    assert all(late.answers)
    assert "exact_match" not in late.figures
    assert late.figures["choice"] >= 0
    assert (late.compared, late.general) == (None, None)


def test_a_loss_that_is_no_number_in_one_share_ends_the_run(model: Any) -> None:
    spec, data, asked = parse(EVALUATION), prepared(2, 0), ToMeasure(rows(1), None)
    part = assess(model, data, spec, asked, NoBar())  # type: ignore[arg-type]
    broken = Found.of([part, replace(part, compared=[(math.nan, 1.0), (0.0, 0.0)])])
    with pytest.raises(GateError, match="its loss is not a number"):
        Assessment.of(broken, data, spec, asked)


def test_a_child_is_asked_several_things_and_answers_in_their_order(tmp_path: Path) -> None:
    asking, answering = Asking(tmp_path / "rank-0.jsonl"), Answering(tmp_path / "rank-0.jsonl")
    heard: list[Any] = []

    def child() -> None:
        for what, request in answering.questions():
            heard.append((what, request))
            answering.answer({"doubled": 2 * request})

    thread = threading.Thread(target=child)
    thread.start()
    for number in (1, 2, 3):
        asking.ask("double", number)
        while not asking.answered():
            pass
        assert asking.answer() == {"doubled": 2 * number}
    asking.ask(END, None)
    thread.join(10)
    assert not thread.is_alive()
    assert heard == [("double", 1), ("double", 2), ("double", 3)]
    assert not list(tmp_path.glob("*.part"))


def test_ggufs_are_made_on_the_other_cards_of_the_run_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CARDS, "4,5,6")
    assert [cards_of_run(parse({"/resources": {"gpus": gpus}})) for gpus in (1, 2, "all", 8)] == [
        ["4"], ["4", "5"], ["4", "5", "6"], ["4", "5", "6"],
    ]  # fmt: skip
    places = in_turn(["4", "5", "6"])
    assert [next(places) for _ in range(4)] == [{"CUDA_VISIBLE_DEVICES": name} for name in "5645"]
    for single in ([], ["4"]):  # told nothing: it sees what the run sees
        places = in_turn(single)
        assert [next(places), next(places)] == [{}, {}]
