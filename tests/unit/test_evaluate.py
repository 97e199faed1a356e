"""Losses that do not depend on the batch, bounded generation batches, exact match, gates."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from job.data.build import Question
from job.errors import GateError
from job.evaluation.assess import figures_of
from job.evaluation.gates import check_gates, judged
from job.evaluation.generate import GENERATION_BATCH_TOKENS, _generation_batches
from job.evaluation.loss import loss_of
from job.spec import GateSpec

VOCABULARY = 50


def figures(loss: float | None, match: float | None = None) -> dict[str, float]:
    """Of a model with this held-out loss, and this share of right answers."""
    questions = [] if match is None else [Question("", [], "right")] * 10
    return figures_of(loss, ["right" if index < 10 * (match or 0) else "wrong" for index in range(len(questions))], questions)


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape)).eval()


def rows(count: int) -> list[dict[str, list[int]]]:
    rng = random.Random(1)
    made = []
    for _ in range(count):
        ids = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(3, 20))]
        made.append({"input_ids": ids, "labels": [-100, *(i if rng.random() < 0.6 else -100 for i in ids[1:-1]), ids[-1]]})
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


def test_a_loss_that_is_not_a_number_ends_the_run() -> None:
    class NotANumber:
        device = "cpu"

        def __call__(self, **_: Any) -> Any:
            return SimpleNamespace(loss=float("nan"))

    with pytest.raises(GateError, match="not a number"):
        loss_of(NotANumber(), rows(2), 1, 0)


def test_generation_batches_hold_their_bound_and_keep_the_order() -> None:
    rng = random.Random(2)
    prompts = [[i] * rng.randint(1, 3000) for i in range(200)]
    batches = list(_generation_batches(prompts, 100))
    assert [p for batch in batches for p in batch] == prompts
    for batch in batches:
        width = max(map(len, batch)) + 100
        assert len(batch) == 1 or width * len(batch) <= GENERATION_BATCH_TOKENS
    assert len(list(_generation_batches([[1] * 40_000], 1))) == 1, "a prompt larger than the bound goes alone"
    assert list(_generation_batches([], 1)) == []


def test_exact_match_ignores_only_white_space_at_the_ends() -> None:
    questions = [Question("", [], text) for text in (" a\n", "b", "c d")]
    assert figures_of(None, ["a", "B", "c  d"], questions) == {"exact_match": round(1 / 3, 6)}


LOSS, MATCH = "held_out_loss", "exact_match"


def gate(metric: str, **bounds: float) -> GateSpec:
    return GateSpec(metric, None, *(bounds.get(name) for name in ("at_least", "at_most", "gain_at_least", "rise_at_most")))


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
        ([gate(LOSS, at_most=0.5, gain_at_least=1.0), gate(MATCH, at_least=0.9)], ["0/at_most", "0/gain_at_least", "1/at_least"]),
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
def test_a_gate_is_about_everything_that_is_delivered_unless_it_says_which(of: tuple[str, ...] | None, holds_for: set[str]) -> None:
    failing = GateSpec(LOSS, of, None, 0.5, None, None)
    for name in ("trained", "adapter", "merged", "lora_gguf", "gguf-q8_0", "gguf-q4_k_m"):
        if name not in holds_for:
            check_gates([failing], name, figures(1.5), figures(1.0))
            continue
        with pytest.raises(GateError, match=f"{name} does not pass this gate on held_out_loss"):
            check_gates([failing], name, figures(1.5), figures(1.0))


def test_an_artefact_is_judged_by_what_it_changes_of_all_held_out_rows() -> None:
    """The compared rows are easier than all rows here; a model that is the trained one gets the trained one's verdict."""
    everywhere, here = figures(1.0, 0.8), figures(0.6, 0.5)
    assert judged(everywhere, here, here) == everywhere
    worse = judged(everywhere, here, figures(0.9, 0.4))
    assert worse == {LOSS: 1.3, "perplexity": pytest.approx(math.exp(1.3), abs=1e-6), MATCH: 0.7}
    assert judged(everywhere, here, figures(0.6)) == {LOSS: 1.0, "perplexity": everywhere["perplexity"]}, "what was not measured"
    assert judged(everywhere, here, {"train_loss": 0.5}) == {}
