"""How a step is computed: memory and time as they were measured on a GPU, and what is chosen by them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from job.plan.cards import CARDS, GB, card_of_device
from job.plan.choice import Choice, Training
from job.plan.duration import epoch_seconds, stages
from job.plan.gpu_memory import GIB, activation_budget, gpu_bytes, rows_at_once
from job.plan.model_size import ModelSize
from job.plan.schedule import Schedule, schedule
from job.spec import JobSpec
from tests.specs import parse

MEASURED = [json.loads(line) for line in (Path(__file__).parents[1] / "gpu" / "steps.jsonl").read_text().splitlines()]
VOCABULARY = 128_256


def llama(parameters: int, hidden: int, layers: int) -> ModelSize:
    return ModelSize(parameters, hidden, layers, VOCABULARY, quantised=False, local=False, origin="")


SIZES = {
    "400m": llama(382_765_056, 1024, 16), "1b": llama(1_235_814_400, 2048, 16), "3b": llama(3_212_749_824, 3072, 28),
    "8b": llama(8_030_261_248, 4096, 32), "14b": llama(14_524_027_904, 5120, 40),
}  # fmt: skip
FITTED = ("1b", "8b")  # of which the 4-bit runs with Unsloth set the terms; the others only check them


def of_case(case: dict[str, Any]) -> JobSpec:
    changes: dict[str, Any] = {
        "/model": {"source": "hf://org/model", "precision": case["precision"], "backend": case["backend"],
                   "max_seq_length": case["max_seq_length"]},
        "/data/packing": case["packing"],
        "/training": {"batch_size": case["rows"], "gradient_accumulation_steps": case["passes"],
                      "gradient_checkpointing": case["checkpointing"], "compute": case.get("compute", "stock")},
    }  # fmt: skip
    if case["precision"] != "full":
        changes["/lora"] = {"r": 16, "alpha": 16}
    return parse(changes)


def words(case: dict[str, Any]) -> str:
    kind = " ".join(str(case[key]) for key in ("shape", "precision", "backend", "checkpointing"))
    how = f"{' packed' if case['packing'] else ''} {case.get('compute', 'stock')}"
    return f"{kind} {case['kept_layers']} kept, {case['rows']} x {case['max_seq_length']}{how}"


@pytest.mark.parametrize("case", MEASURED, ids=words)
def test_memory_is_what_was_measured(case: dict[str, Any]) -> None:
    planned = gpu_bytes(of_case(case), SIZES[case["shape"]], case["pass_tokens"], case["kept_layers"]) / GIB
    assert planned == pytest.approx(case["peak_gib"], rel=0.1)


TIMED = [case for case in MEASURED if case["step_seconds"]]


def planned_seconds(case: dict[str, Any]) -> float:
    rows, passes, tokens = case["rows"], case["passes"], case["pass_tokens"]
    seen = 720.0 if case["packing"] else float(case["max_seq_length"])
    a_step = Schedule(
        rows, rows * passes, tokens * passes, tokens * passes, tokens // rows, seen, passes, 1, 1, case["packing"], True
    )
    return epoch_seconds(of_case(case), SIZES[case["shape"]], a_step, CARDS["h200"], case["kept_layers"])


@pytest.mark.parametrize("case", TIMED, ids=words)
def test_time_is_what_was_measured(case: dict[str, Any]) -> None:
    assert planned_seconds(case) == pytest.approx(case["step_seconds"], rel=0.2)


# ---------------------------------------------------------------------------------------------------- choices


def tutorial(**training: Any) -> JobSpec:
    """The FineTome recipe: 16 packed sequences a step."""
    return parse(
        {
            "/model/max_seq_length": 2048,
            "/data/packing": True,
            "/training": {"batch_size": 2, "gradient_accumulation_steps": 8, **training},
        }
    )


def training_of(spec: JobSpec, size: ModelSize = SIZES["8b"], card: str = "h200") -> Training:
    lengths = [512] * 4 * 64
    return Training(spec, size, lambda rows: schedule(spec, lengths, rows, spec.data.packing), CARDS[card])


def planned_gib(spec: JobSpec, choice: Choice, size: ModelSize = SIZES["8b"]) -> float:
    return gpu_bytes(spec, size, choice.batch.rows * 2048, choice.kept_layers) / GIB


def test_with_room_nothing_is_computed_twice_and_the_passes_are_large() -> None:
    choice = training_of(tutorial()).choose(139 * GIB)
    assert (choice.batch.rows, choice.batch.accumulation_steps, choice.kept_layers) == (8, 2, 32)


def test_cards_share_a_step_as_was_measured() -> None:
    """8B with 16 rows a step on H200: 2.003 s on one, 1.018 on two; three have to wait for the one with most passes."""
    spec = tutorial(micro_batch=8)
    one, two, three = (replace(training_of(spec), cards=cards) for cards in (1, 2, 3))
    choice = one.choose(139 * GIB)
    assert two.choose(139 * GIB).batch == choice.batch
    assert two.seconds(choice) / one.seconds(choice) == pytest.approx(1.018 / 2.003, rel=0.01)
    auto = replace(training_of(tutorial()), cards=3)
    assert auto.choose(139 * GIB).batch.accumulation_steps >= 3
    assert three.seconds(choice) == two.seconds(choice)


def test_processes_of_several_cards_import_while_rows_are_prepared() -> None:
    """No stage waits for the engine but the load, for what is left of it; the training starts at once."""
    spec, size = tutorial(), SIZES["8b"]
    one, quick, slow = (
        {stage.name: stage.seconds for stage in stages(spec, size, data, 100.0, cards)}
        for cards, data in ((1, 10.0), (2, 10.0), (2, 60.0))
    )
    assert quick.keys() == one.keys() - {"engine"}
    assert quick["load"] - slow["load"] == pytest.approx(one["engine"] - 10)
    assert slow["load"] == one["load"]
    assert quick["train"] == one["train"]


def test_parts_of_the_weights_take_less_of_each_card() -> None:
    """Every weight of the 8B shape, which one card of 80 GB cannot hold with torch's moments, and two can."""
    whole, spread = (
        parse(
            {
                "/model/precision": "full",
                "/model/backend": "peft",
                "/training/optimizer": "adamw_torch",
                "/resources": how,
            }
        )
        for how in ({}, {"gpus": 2, "weights": "spread"})
    )
    assert gpu_bytes(whole, SIZES["8b"], 0, 0) > 90 * GB
    assert gpu_bytes(spread, SIZES["8b"], 0, 0) < 66 * GB


@pytest.mark.parametrize("gib", [8, 10, 12, 16, 24, 32, 40, 48, 80, 141])
def test_whatever_the_memory_the_choice_fits_and_more_of_it_is_not_slower(gib: int) -> None:
    spec = tutorial()
    training = training_of(spec)
    choice, roomier = training.choose(gib * GIB), training.choose((gib + 4) * GIB)
    assert planned_gib(spec, choice) <= gib / 1.05
    assert choice.batch.rows * choice.batch.accumulation_steps == 16
    assert training.seconds(roomier) <= 1.01 * training.seconds(choice)


def test_some_layers_are_kept_where_there_is_no_room_for_all() -> None:
    kept = [training_of(tutorial(micro_batch=8)).choose(gib * GIB).kept_layers for gib in (8, 16, 24, 40, 80)]
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert 0 < kept[2] < kept[3] < kept[4] == 32


def test_a_step_of_very_many_rows_is_cut_without_looking_at_each_way() -> None:
    spec = tutorial(batch_size=4096, gradient_accumulation_steps=65536)
    assert rows_at_once(spec) == [2**power for power in range(9)]
    assert training_of(spec).choose(139 * GIB).kept_layers == 32


def test_the_spec_has_its_way() -> None:
    for value, kept in ((True, 0), ("unsloth", 0), (False, 32)):
        choice = training_of(tutorial(gradient_checkpointing=value, micro_batch=4)).choose(139 * GIB)
        assert (choice.batch.rows, choice.batch.accumulation_steps, choice.kept_layers) == (4, 4, kept)


def test_a_failure_leads_to_far_less_and_in_the_end_to_nothing() -> None:
    training = training_of(tutorial())
    choice: Choice | None = training.choose(139 * GIB)
    seen: list[Choice] = []
    while choice:
        seen.append(choice)
        choice = training.choose_after(choice)
    needed = [choice.activation_bytes for choice in seen]
    assert all(after <= 0.6 * before or after == needed[-1] for before, after in itertools.pairwise(needed))
    assert (seen[-1].batch.rows, seen[-1].kept_layers) == (1, 0)
    assert len(seen) < 12


def test_what_comes_after_a_failure_fits_what_is_free_then() -> None:
    """Somebody else has taken the memory, or the training goes on on a smaller card: one more try, and not six."""
    training = training_of(tutorial())
    roomy, small = training.choose(139 * GIB), 16 * GIB
    after = training.choose_after(roomy, small)
    assert training.fits(roomy, 139 * GIB)
    assert not training.fits(roomy, small)
    assert after == training.choose(small)
    assert training.fits(after, small)
    assert training.choose_after(roomy, 139 * GIB) == training.choose_after(roomy)


def test_where_nothing_is_reckoned_to_fit_the_least_is_tried() -> None:
    assert activation_budget(tutorial(), SIZES["8b"], 6 * GIB) < 0
    choice = training_of(tutorial()).choose(6 * GIB)
    assert (choice.batch.rows, choice.kept_layers) == (1, 0)


def test_a_slow_card_takes_small_passes_without_recomputation_sooner() -> None:
    """There the products take the time, and not the host that starts them."""
    spec = tutorial()
    quick, slow = (training_of(spec, card=card).choose(20 * GIB) for card in ("h200", "l4"))
    assert slow.kept_layers == 32
    assert slow.batch.rows <= quick.batch.rows


DEVICES = [
    ("NVIDIA H200", 141, "H200"), ("NVIDIA H100 80GB HBM3", 80, "H100"), ("NVIDIA A100-SXM4-40GB", 40, "A100 40"),
    ("NVIDIA A100-SXM4-80GB", 80, "A100 80"), ("NVIDIA A10G", 24, "A10"),
    ("Tesla T4", 16, "T4"), ("NVIDIA L4", 24, "L4"),
    ("NVIDIA L40S", 48, "L40S"), ("NVIDIA GeForce RTX 4090", 24, "RTX 4090"),
    ("NVIDIA B300", 288, "H200"), ("NVIDIA RTX A4000", 16, "T4"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "gb", "card"), DEVICES)
def test_the_card_is_known_by_what_its_driver_calls_it(name: str, gb: int, card: str) -> None:
    assert card_of_device(name, gb * GB).name == card
