"""Losses that do not depend on the batch, bounded generation batches, exact match, gates."""

from __future__ import annotations

import copy
import math
import random
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from job.data.build import Question
from job.errors import GateError
from job.evaluation.gates import check_gates, judged
from job.evaluation.generate import GENERATION_BATCH_TOKENS, answer_ids, answered, generation_batches
from job.evaluation.loss import loss_of, losses_of
from job.evaluation.margins import equal_margins, margins, rewards_of
from job.evaluation.metrics import METRICS, Options
from job.evaluation.scores import Wanted, answer_rows, loss_rows, margin_rows
from job.evaluation.scores import figures as figures_of
from job.evaluation.shares import Share, together
from job.spec import GateSpec
from job.training.alive import says_alive
from job.training.methods import METHODS
from job.training.methods.record import Rewards

VOCABULARY = 50


def figures(loss: float | None, match: float | None = None) -> dict[str, float]:
    """Of a model with this held-out loss, and this share of right answers."""
    questions = [] if match is None else [Question("", [], "right")] * 10
    answers = ["right" if index < 10 * (match or 0) else "wrong" for index in range(len(questions))]
    wanted = Wanted((METRICS["exact_match"],), Options())
    return figures_of(loss_rows([] if loss is None else [(loss, 1.0)]) | answer_rows(wanted, answers, questions))


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape)).eval()


def rows(count: int) -> list[dict[str, list[int]]]:
    rng = random.Random(1)
    made = []
    for _ in range(count):
        ids = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(3, 20))]
        made.append(
            {"input_ids": ids, "labels": [-100, *(i if rng.random() < 0.6 else -100 for i in ids[1:-1]), ids[-1]]}
        )
    return made


def test_the_loss_is_the_mean_over_trained_tokens_whatever_the_batch(model: Any) -> None:
    import torch

    total, tokens = 0.0, 0
    for row in rows(9):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100))
        tokens += int((labels != -100).sum())
    for batch in (1, 2, 4, 9, 100):
        assert loss_of(model, rows(9), batch, 0) == pytest.approx(total / tokens, rel=1e-5)


def test_the_figures_of_pairs() -> None:
    """Equal rewards count half; of what was not measured there is no figure."""
    found = figures_of(margin_rows([(0.5,), (-0.25,), (0.0,), (1.0,)]))
    assert found == {"preference_accuracy": 0.625, "reward_margin": 0.3125}
    assert figures_of(margin_rows([(0.0,)]))["preference_accuracy"] == 0.5
    assert figures_of(margin_rows([])) == {}
    of_every_two = figures_of(margin_rows([(0.5, -1.0), (0.25, 0.5)]))
    assert of_every_two == {"preference_accuracy": 0.75, "reward_margin": 0.0625}


def test_margins_are_of_the_rewards(model: Any) -> None:
    """Beside log-probabilities that are worked out here, with the adapter off for the reference."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear", r=2))
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1 * weight.requires_grad)
    sides = [rows(4), rows(9)[5:]]

    def log_probability(of: Any, row: dict[str, list[int]]) -> float:
        with torch.no_grad():
            known = of(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        return sum(float(known[place, label]) for place, label in enumerate(row["labels"][1:]) if label != -100)

    def reward(row: dict[str, list[int]]) -> float:
        return 0.2 * (log_probability(adapted, row) - log_probability(model, row))

    pairs = [
        chosen | {f"rejected_{name}": rejected[name] for name in rejected}
        for chosen, rejected in zip(*sides, strict=True)
    ]
    told: list[int] = []
    dpo = METHODS["dpo"].rewards
    assert dpo is not None
    found = margins(pairs, rewards_of(adapted, pairs, dpo, SimpleNamespace(beta=0.2), 0, told.append))
    assert [margin for (margin,) in found] == pytest.approx(
        [reward(a) - reward(b) for a, b in zip(*sides, strict=True)], abs=1e-5
    )
    assert min(abs(margin) for (margin,) in found) > 1e-4
    assert told == [1, 2, 3, 4]


def test_answers_with_labels_are_compared_each_good_one_with_every_bad_one(model: Any) -> None:
    """The base, which likes all alike, has as many margins: base and tuned are compared good answer by good answer."""
    import datasets

    labels = [1, 0, 1, 1, 0]
    found = datasets.Dataset.from_list(
        [row | {"desirable": [label]} for row, label in zip(rows(5), labels, strict=True)]
    )
    rewards = Rewards(lambda _, log_probability, *__: log_probability, by_reference=False)
    values = rewards_of(model, found, rewards, None, 0, lambda _: None)
    assert [len(each) for each in margins(found, values)] == [2, 2, 2]
    parts = [rewards_of(model, found, rewards, None, 0, lambda _: None, Share(number, 2)) for number in (0, 1)]
    assert together(parts) == values
    assert all(0 < sum(value is not None for value in part) < 5 for part in parts)
    assert [len(equal_margins(found.select(range(count)))) for count in (5, 4, 1)] == [3, 3, 0]
    assert len(equal_margins(datasets.Dataset.from_list(rows(4)))) == 4
    assert margins(found.select([0]), values[:1]) == []


def test_a_reward_that_is_not_a_number_ends_the_run() -> None:
    def diverged(**_: Any) -> Any:
        return SimpleNamespace(loss=float("nan"))

    diverged.device = "cpu"  # type: ignore[attr-defined]
    pair = rows(1)[0] | {f"rejected_{name}": values for name, values in rows(1)[0].items()}
    with pytest.raises(GateError, match="a reward is not a number"):
        rewards_of(
            diverged,
            [pair],
            Rewards(lambda _, log_probability, *__: log_probability, by_reference=False),
            None,
            0,
            print,
        )


def test_gates_on_pairs_are_of_the_trained_model_alone() -> None:
    gate = GateSpec("preference_accuracy", None, 0.9, None, None, None)
    with pytest.raises(GateError, match="trained does not pass this gate on preference_accuracy"):
        check_gates([gate], "trained", {"preference_accuracy": 0.5}, {"preference_accuracy": 0.8})
    check_gates([gate], "merged", {"preference_accuracy": 0.5}, {"held_out_loss": 1.0})


def test_a_gate_on_general_rows_holds_the_rise_of_the_trained_model_and_of_what_is_delivered() -> None:
    gate = GateSpec("general_loss", None, None, None, None, 0.1)
    check_gates([gate], "trained", {"general_loss": 2.0}, {"general_loss": 2.1})
    with pytest.raises(GateError, match=r"gate on general_loss \(found 0.2\); expected above the base by at most 0.1"):
        check_gates([gate], "trained", {"general_loss": 2.0}, {"general_loss": 2.2})
    with pytest.raises(GateError, match="merged does not pass this gate on general_loss"):
        check_gates([gate], "merged", {"general_loss": 2.0}, {"general_loss": 2.2})
    with pytest.raises(GateError, match="found not measured"):
        check_gates([gate], "merged", {"general_loss": 2.0}, {"held_out_loss": 1.0})
    check_gates([replace(gate, of=("trained",))], "merged", {"general_loss": 2.0}, {"held_out_loss": 1.0})


def test_an_artefact_is_judged_by_what_it_changes_on_the_compared_rows() -> None:
    """General rows too, also where no rows are held out; of these the loss makes the perplexity."""
    general = {"general_loss": 2.0}, {"general_loss": 2.5}, {"general_loss": 2.75}
    assert judged(*general) == judged(*general[:2], general[2] | {"train_loss": 1.0}) == {"general_loss": 2.25}
    assert judged({"held_out_loss": 1.0}, {"held_out_loss": 1.0}, {"held_out_loss": 1.5}) == {
        "held_out_loss": 1.5,
        "perplexity": round(math.exp(1.5), 6),
    }


def test_the_losses_of_the_rows_make_that_mean(model: Any) -> None:
    """Each row's is that of the row by itself, whatever is beside it in a batch."""
    single = [loss_of(model, [row], 1, 0) for row in rows(9)]
    counts = [sum(label != -100 for label in row["labels"][1:]) for row in rows(9)]
    for batch in (1, 4, 9):
        found = losses_of(model, rows(9), batch, 0)
        assert [tokens for _, tokens in found] == counts
        assert [nats / tokens for nats, tokens in found] == pytest.approx(single, rel=1e-5)


def test_a_loss_that_is_not_a_number_ends_the_run() -> None:
    class NotANumber:
        device = "cpu"

        def __call__(self, **_: Any) -> Any:
            return SimpleNamespace(loss=float("nan"))

    for measure in (loss_of, losses_of):
        with pytest.raises(GateError, match="not a number"):
            measure(NotANumber(), rows(2), 1, 0)


# -------------------------------------------------------------------------------------------------- generation


def test_generation_batches_hold_their_bound_and_prompts_of_like_lengths() -> None:
    rng = random.Random(2)
    prompts = [[i] * rng.randint(1, 3000) for i in range(200)]
    batches = list(generation_batches(prompts, 100))
    order = [number for batch in batches for number in batch]
    assert sorted(order) == list(range(200))
    lengths = [len(prompts[number]) for number in order]
    assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        width = max(len(prompts[number]) for number in batch) + 100
        assert len(batch) == 1 or width * len(batch) <= GENERATION_BATCH_TOKENS
    assert len(list(generation_batches([[1] * 40_000], 1))) == 1, "a prompt larger than the bound goes alone"
    assert list(generation_batches([], 1)) == []


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]


def greedy(model: Any, prompt: list[int], stops: list[int], most: int) -> list[int]:
    """One token at a time, each the likeliest, of the prompt by itself."""
    import torch

    said: list[int] = []
    while len(said) < most and not (said and said[-1] in stops):
        with torch.no_grad():
            said.append(int(model(torch.tensor([[*prompt, *said]])).logits[0, -1].argmax()))
    return said


def test_answers_are_greedy_whatever_the_model_says_of_generation(model: Any) -> None:
    """And in the order of the prompts, each up to its end; a model's own penalties would count for the rest."""
    from transformers import GenerationConfig

    free = [greedy(model, prompt, [], 8) for prompt in PROMPTS]
    stops = [free[0][2], free[2][4]]
    expected = [greedy(model, prompt, stops, 8) for prompt in PROMPTS]
    assert {len(ids) for ids in expected} > {3}, "one ends early, another does not"
    own = GenerationConfig(
        repetition_penalty=9.0, no_repeat_ngram_size=1, min_new_tokens=8, suppress_tokens=[free[0][0]]
    )
    before, model.generation_config = model.generation_config, own
    try:
        assert answer_ids(model, PROMPTS, 0, stops, 8) == expected
        assert model.generation_config is own, "as it was"
    finally:
        model.generation_config = before


@pytest.mark.parametrize("adapted", [False, True])
def test_each_token_and_each_loss_says_that_the_process_is_alive(model: Any, adapted: bool, tmp_path: Path) -> None:
    """With an adapter too, where losses are the whole model's and tokens those of the one within."""
    from peft import LoraConfig, get_peft_model

    within = copy.deepcopy(model)
    asked = get_peft_model(within, LoraConfig(r=2, target_modules=["q_proj"])).eval() if adapted else within
    touched: list[int] = []
    with says_alive(asked, tmp_path / "said.jsonl", every_seconds=0.0):
        look = within.register_forward_hook(lambda *_: touched.append((tmp_path / "said.alive").stat().st_mtime_ns))
        answer_ids(asked, PROMPTS[:1], 0, [], 8)
        assert len(touched) == len(set(touched)) == 8
        look.remove()
        loss_of(asked, rows(1), 1, 0)
        assert (tmp_path / "said.alive").stat().st_mtime_ns > touched[-1]
    (tmp_path / "said.alive").unlink()
    answer_ids(asked, PROMPTS[:1], 0, [], 1)
    assert not (tmp_path / "said.alive").exists()


def in_time(model: Any, deadline: float, stops: list[int]) -> list[tuple[int, list[int]]]:
    """Answers that may be so long that each prompt is a batch by itself."""
    batches = answered(model, PROMPTS, 0, stops, 10_000, deadline)
    return [pair for numbers, ids in batches for pair in zip(numbers, ids, strict=True)]


def test_what_is_not_answered_in_time_is_left_out(model: Any) -> None:
    every = list(range(VOCABULARY))  # all answers end with their first token
    whole = in_time(model, time.monotonic() + 60, every)
    assert sorted(whole) == list(enumerate(answer_ids(model, PROMPTS, 0, every, 8)))
    order = [number for number, _ in whole]
    assert order != sorted(order, key=lambda number: -len(PROMPTS[number])), "or only short ones would be left out"
    assert order == [number for number, _ in in_time(model, time.monotonic() + 60, every)]
    assert in_time(model, time.monotonic() - 1, every) == []
    began = time.monotonic()
    assert in_time(model, began + 0.3, []) == [], "an answer that is under way is given up, not taken for a whole one"
    assert time.monotonic() - began < 10


def test_parts_of_a_batch_that_memory_is_too_small_for_share_its_time(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    limits: list[float] = []
    generate = model.generate

    def short_of_memory(**given: Any) -> Any:
        if len(given["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        limits.append(given["generation_config"].max_time)
        time.sleep(0.05)
        return generate(**given)

    monkeypatch.setattr(model, "generate", short_of_memory)
    (batch,) = answered(model, PROMPTS, 0, list(range(VOCABULARY)), 8, time.monotonic() + 60)
    assert len(limits) == len(batch[0]) == len(PROMPTS)
    assert all(before - after >= 0.05 for before, after in pairwise(limits))


LOSS, MATCH = "held_out_loss", "exact_match"


def gate(metric: str, **bounds: float) -> GateSpec:
    return GateSpec(
        metric, None, *(bounds.get(name) for name in ("at_least", "at_most", "gain_at_least", "rise_at_most"))
    )


@pytest.mark.parametrize(
    ("gates", "failing"),
    [
        ([gate(LOSS, at_most=1.0)], []),
        ([gate(LOSS, at_most=0.99)], ["0/at_most"]),
        ([gate(LOSS, gain_at_least=0.5)], []),
        ([gate(LOSS, gain_at_least=0.51)], ["0/gain_at_least"]),
        ([gate(LOSS, rise_at_most=-0.5)], []),
        ([gate(LOSS, rise_at_most=-0.51)], ["0/rise_at_most"]),
        ([gate("perplexity", at_most=math.exp(1) + 1e-6)], []),
        ([gate(MATCH, at_least=0.8)], []),
        ([gate(MATCH, at_least=0.81), gate(MATCH, gain_at_least=0.8)], ["0/at_least"]),
        ([gate(MATCH, gain_at_least=0.81)], ["0/gain_at_least"]),
        (
            [gate(LOSS, at_most=0.5, gain_at_least=1.0), gate(MATCH, at_least=0.9)],
            ["0/at_most", "0/gain_at_least", "1/at_least"],
        ),
    ],
)
def test_gates_name_each_figure_that_does_not_hold(gates: list[GateSpec], failing: list[str]) -> None:
    base, trained = figures(1.5, 0.0), figures(1.0, 0.8)
    if not failing:
        check_gates(gates, "trained", base, trained)
        return
    with pytest.raises(GateError) as caught:
        check_gates(gates, "trained", base, trained)
    assert [fault.where for fault in caught.value.faults] == [f"/evaluation/gates/{name}" for name in failing]


def test_a_bound_that_is_just_met_holds() -> None:
    """0.3 - 0.1 is 0.19999999999999998 to a computer."""
    check_gates([gate(LOSS, gain_at_least=0.2, rise_at_most=-0.2)], "trained", {LOSS: 0.3}, {LOSS: 0.1})


def test_a_figure_that_was_not_measured_passes_no_gate() -> None:
    with pytest.raises(GateError, match="not measured"):
        check_gates([gate(MATCH, at_least=0.0)], "trained", figures(1.0), figures(1.0))
    with pytest.raises(GateError, match="not measured"):
        check_gates([gate(LOSS, gain_at_least=0.0)], "trained", {}, figures(1.0))


def test_figures_leave_out_what_was_not_measured() -> None:
    assert figures(None) == {}
    assert figures(0.5, 1.0) == {"held_out_loss": 0.5, "exact_match": 1.0, "perplexity": round(math.exp(0.5), 6)}


@pytest.mark.parametrize(
    ("of", "holds_for"),
    [
        (None, {"trained", "adapter", "merged", "lora_gguf", "gguf-q8_0", "gguf-q4_k_m"}),
        (("trained",), {"trained"}),
        (("merged", "gguf"), {"merged", "gguf-q8_0", "gguf-q4_k_m"}),
        (("gguf-q8_0",), {"gguf-q8_0"}),
    ],
)
def test_a_gate_is_about_everything_that_is_delivered_unless_it_says_which(
    of: tuple[str, ...] | None, holds_for: set[str]
) -> None:
    failing = GateSpec(LOSS, of, None, 0.5, None, None)
    for name in ("trained", "adapter", "merged", "lora_gguf", "gguf-q8_0", "gguf-q4_k_m"):
        if name not in holds_for:
            check_gates([failing], name, figures(1.5), figures(1.0))
            continue
        with pytest.raises(GateError, match=f"{name} does not pass this gate on held_out_loss"):
            check_gates([failing], name, figures(1.5), figures(1.0))


def test_an_artefact_is_judged_by_what_it_changes_of_all_held_out_rows() -> None:
    """The compared rows are easier than all rows here; a copy of the trained model gets its verdict."""
    everywhere, here = figures(1.0, 0.8), figures(0.6, 0.5)
    assert judged(everywhere, here, here) == everywhere
    worse = judged(everywhere, here, figures(0.9, 0.4))
    assert worse == {LOSS: 1.3, "perplexity": pytest.approx(math.exp(1.3), abs=1e-6), MATCH: 0.7}
    assert judged(everywhere, here, figures(0.6)) == {LOSS: 1.0, "perplexity": everywhere["perplexity"]}, (
        "what was not measured"
    )
    assert judged(everywhere, here, {"train_loss": 0.5}) == {}
