"""Losses that do not depend on the batch, bounded generation batches, exact match, gates."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from job.data.build import Question
from job.errors import GateError
from job.evaluation.assess import Assessment, exact_match
from job.evaluation.gates import check_gates
from job.evaluation.generate import GENERATION_BATCH_TOKENS, _generation_batches
from job.evaluation.loss import loss_of
from job.spec import GatesSpec

VOCABULARY = 50


def assessment(loss: float | None, match: float | None = None) -> Assessment:
    return Assessment(loss, match, [], [])


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


def test_a_loss_that_is_no_number_ends_the_run() -> None:
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
    assert exact_match(["a", "B", "c  d"], questions) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("gates", "failing"),
    [
        (GatesSpec(1.0, None, None), []),
        (GatesSpec(0.99, None, None), ["max_held_out_loss"]),
        (GatesSpec(None, 0.5, None), []),
        (GatesSpec(None, 0.51, None), ["min_loss_improvement"]),
        (GatesSpec(None, None, 0.8), []),
        (GatesSpec(None, None, 0.81), ["min_exact_match"]),
        (GatesSpec(0.5, 1.0, 0.9), ["max_held_out_loss", "min_loss_improvement", "min_exact_match"]),
    ],
)
def test_gates_name_each_figure_that_does_not_hold(gates: GatesSpec, failing: list[str]) -> None:
    base, tuned = assessment(1.5, 0.0), assessment(1.0, 0.8)
    if not failing:
        check_gates(gates, base.figures(), tuned.figures())
        return
    with pytest.raises(GateError) as caught:
        check_gates(gates, base.figures(), tuned.figures())
    assert [fault.pointer for fault in caught.value.faults] == [f"/evaluation/gates/{name}" for name in failing]


def test_figures_leave_out_what_was_not_measured() -> None:
    assert assessment(None).figures() == {}
    assert assessment(0.5, 1.0).figures() == {"held_out_loss": 0.5, "exact_match": 1.0, "perplexity": round(math.exp(0.5), 6)}
