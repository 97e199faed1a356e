"""`tunejob plan`: what it reckons is what was measured and what a run does; mistakes caught before any GPU second."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from job.arguments import parser
from job.errors import CapacityError, InputError, JobError, PolicyError, SpecError
from job.evaluation.task_work import TaskRequests
from job.host.log import Log
from job.host.planned import PlannedRun
from job.init.settings import QUICK_RATE
from job.plan.advice import Facts, advise
from job.plan.cards import CARDS, GB, card_of
from job.plan.duration import (
    JUDGE_REQUEST_SECONDS,
    LAYER_SECONDS,
    REOPEN_SECONDS,
    TOKEN,
    Passes,
    epoch_seconds,
    measured_seconds,
)
from job.plan.gpu_memory import GIB, card_bytes, gpu_bytes, gpu_memory, least_gpu_bytes, most_tokens, rows_at_once
from job.plan.machine import resources
from job.plan.model_size import ModelSize, size_of_fetched
from job.plan.schedule import Schedule, packed, schedule
from job.preview.benchmarks import see_tasks
from job.preview.common import common_jobs, drawn
from job.preview.evaluated import evaluated
from job.preview.expected import expected
from job.preview.plan import Plan, PlanOptions, make_plan
from job.preview.reckoning import ANY
from job.preview.text import as_markdown, as_text
from job.source import fetch_bases
from job.source.model_config import check_values
from job.spec import JobSpec, parse_spec
from job.spec.strict import StrictValidator, load_schema
from tests.data_rows import Row, prepare, sized_model, turns, write_rows
from tests.forking import ROOT, environment
from tests.planned import GUIDE, README, in_short, printed
from tests.renders import LAYOUTS, rendered
from tests.servers import Hub
from tests.specs import changed, parse
from tests.tiny import tiny_dir

LLAMA_8B = ModelSize(8_030_261_248, 4096, 32, 128_256, quantised=False, local=False, origin="")
LLAMA_1B = ModelSize(1_235_814_400, 2048, 16, 128_256, quantised=False, local=False, origin="")
NOTHING_ODD = Facts(
    rows=2000, epochs=2.0, steps=500, longest_tokens=2000,
    truncated_rows=0, packing_time=None, formats=("messages",), chats=True,
    quantised=False, parameters=8 * 10**9,
)  # fmt: skip


def tutorial(rows: int, passes: int, checkpointing: Any = "unsloth", **changes: Any) -> JobSpec:
    """The FineTome recipe in micro-batches of `rows`."""
    return parse(
        {
            "/model/max_seq_length": 2048,
            "/data/packing": True,
            "/training": {
                "batch_size": rows,
                "gradient_accumulation_steps": passes,
                "gradient_checkpointing": checkpointing,
            },
            **changes,
        }
    )


def one_step(spec: JobSpec) -> Schedule:
    """Full packs of short chats."""
    rows = spec.training.batch_size * spec.training.gradient_accumulation_steps
    return schedule(spec, [512] * 4 * rows, spec.training.batch_size, packing=True)


def test_memory_has_bounds_in_their_order() -> None:
    spec = tutorial(8, 2, False)
    found = gpu_memory(spec, LLAMA_8B, 8, 500, LLAMA_8B.layers)
    assert found.least < found.expected < found.at_most
    assert found.least == card_bytes(least_gpu_bytes(spec, LLAMA_8B)), "one row of max_seq_length, all computed again"
    short = gpu_memory(spec, LLAMA_8B, 1, 5, 0)
    assert short.expected < short.least == found.least, "the least is for rows of any length"
    asked = resources(spec, LLAMA_8B)
    (line,) = [line for line in asked.words() if "GPU memory" in line]
    assert line == (
        f"GPU memory, least: {found.least / GB:.1f} GB, as sparingly as the spec lets with rows of max_seq_length "
        f"{spec.model.max_seq_length}; a card of 24 GB or more."
    ), "render has the figure of the plan"
    assert found.at_most > gpu_bytes(spec, LLAMA_8B, 8 * 2048, LLAMA_8B.layers)


def test_pairs_are_two_sequences_and_one_more_pass() -> None:
    """Reckoned, not measured: a forward pass beside the two and the recomputed one that a step of an adapter has."""
    pairs = {"/training/method": "dpo", "/data/train/0/format": "preference", "/data/packing": False}
    one, two = tutorial(4, 4, **{"/data/packing": False}), tutorial(4, 4, **pairs)
    rows = [rows_at_once(spec) for spec in (one, two)]
    assert rows == [[1, 2, 4, 8, 16], [4]], "how pairs are cut into passes changes their loss"
    assert most_tokens(two, 4) == most_tokens(one, 8)
    assert least_gpu_bytes(two, LLAMA_8B) > least_gpu_bytes(
        replace(one, training=replace(one.training, micro_batch=8)), LLAMA_8B
    )
    times = [epoch_seconds(spec, LLAMA_8B, one_step(one), CARDS["h200"], 0) for spec in (one, two)]
    assert times[1] / times[0] == pytest.approx(4 / 3)
    rate = replace(two, training=replace(two.training, learning_rate=2e-4))
    assert [advice.text for advice in advise(rate, NOTHING_ODD)] == ["5e-07 to 5e-05 instead of 0.0002"]
    assert advise(replace(two, training=replace(two.training, learning_rate=5e-6)), NOTHING_ODD) == []
    small = replace(NOTHING_ODD, parameters=135_000_000)
    assert advise(rate, small) == []
    slow = replace(two, training=replace(two.training, learning_rate=1e-6))
    assert [advice.text for advice in advise(slow, small)] == ["5e-06 to 0.0005 instead of 1e-06"]


@pytest.mark.parametrize(
    ("changes", "rows", "steps"),
    [
        ({"epochs": 3, "batch_size": 2, "gradient_accumulation_steps": 4}, 100, 39),
        ({"epochs": 0.5, "batch_size": 3, "gradient_accumulation_steps": 1}, 10, 2),
        ({"max_steps": 7}, 10, 7),
        ({"batch_size": 8, "gradient_accumulation_steps": 8}, 3, 1),
    ],
)
def test_steps_are_the_trainers(changes: dict[str, Any], rows: int, steps: int) -> None:
    found = schedule(parse({"/training": changes}), [10] * rows, 2, packing=False)
    assert (found.steps, found.sequences, found.micro_batches) == (steps, rows, math.ceil(rows / 2))


def test_padding_is_counted() -> None:
    spec = parse({"/data/shuffle": False, "/model/backend": "peft"})
    found = schedule(spec, [10, 30, 20, 20], 2, packing=False)
    assert (found.tokens, found.padded_tokens, found.longest_tokens, found.padding) == (80, 100, 30, pytest.approx(0.2))
    assert found.computed_tokens == 100


def test_unsloth_computes_no_padding_on_a_gpu() -> None:
    found = schedule(parse({"/data/shuffle": False}), [10, 30, 20, 20], 2, packing=False)
    assert (found.computed_tokens, found.padding) == (80, 0)
    assert found.padded_tokens == 100  # on a CPU


def test_packs_are_full_and_hold_every_token() -> None:
    """That they are those of TRL, tests/flow/test_init.py holds."""
    assert sorted(packed([40, 30, 30, 24, 10], 64)) == [10, 60, 64]
    assert sorted(packed([64] * 3 + [1] * 70, 64)) == [6, 64, 64, 64, 64]


# ----------------------------------------------------------------------------------------------------- advice

SAID: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/training/learning_rate", {"/model/precision": "full", "/training/learning_rate": 2e-4}, {}),
    ("/training/learning_rate", {"/training/learning_rate": 2e-3}, {}),
    ("/training/learning_rate", {"/training/learning_rate": 1e-5}, {}),
    ("/training/epochs", {}, {"epochs": 20.0, "rows": 600}),
    ("/model/max_seq_length", {"/model/max_seq_length": 8192}, {"longest_tokens": 300}),
    ("/model/max_seq_length", {}, {"truncated_rows": 500}),
    ("/data/packing", {}, {"packing_time": 0.5}),
    ("/data/train", {}, {"rows": 40}),
    ("/data/train/0/format", {}, {"formats": ("prompt_completion",)}),
    ("/data/train/0/format", {}, {"formats": ("text",)}),
    ("/model/merge_base", {}, {"quantised": True}),
    ("/data/chat_template", {"/data/chat_template": "chatml"}, {"chats": False}),
]


@pytest.mark.parametrize(("where", "changes", "facts"), SAID)
def test_advice_is_given_with_its_reason_where_it_is_due(
    where: str, changes: dict[str, Any], facts: dict[str, Any]
) -> None:
    (advice,) = advise(parse(changes), replace(NOTHING_ODD, **facts))
    assert advice.where == where
    assert len(advice.text) > 5
    assert len(advice.reason) > 20


def test_no_advice_where_nothing_is_odd() -> None:
    assert advise(parse({}), NOTHING_ODD) == []
    assert advise(parse({"/model/precision": "full"}), NOTHING_ODD) == []
    assert advise(parse({"/training/learning_rate": QUICK_RATE}), replace(NOTHING_ODD, parameters=135_000_000)) == [], (
        "init writes it"
    )
    assert advise(parse({}), replace(NOTHING_ODD, rows=600, epochs=8.0, steps=104)) == [], (
        "init writes as many as about 100 steps need"
    )
    assert advise(parse({}), replace(NOTHING_ODD, truncated_rows=20)) == [], "a few long rows are told by the plan"
    assert advise(parse({"/data/chat_template": "chatml"}), NOTHING_ODD) == [], "the model has read some template"


# ------------------------------------------------------------------------------------------------- whole plans


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A byte tokenizer, the config and the weights' header of a model of 1.5 billion weights, which are holes."""
    folder = tmp_path / "model"
    folder.mkdir()
    sized_model(folder, 1_500_000_000, {"hidden_size": 2048, "num_hidden_layers": 24})
    return folder


def plan(
    model: Path, rows: list[Row], changes: dict[str, Any] | None = None, sample: int | None = None, **prices: float
) -> Plan:
    path = write_rows(model.parent / "rows.jsonl", rows)
    length = {"/model/source": str(model), "/model/max_seq_length": 256, "/data/train/0/source": str(path)}
    spec = parse({**length, "/output/uri": str(model.parent / "out"), **(changes or {})})
    given = {name or ANY: price for name, price in prices.items()}
    scratch = model.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return make_plan(
        spec,
        PlanOptions(model.parent, sample, given, advice=True, alone=False),
        scratch,
        Log(io.StringIO(), json_lines=True),
    )


def chats(count: int, words: int = 1) -> list[Row]:
    return [{"messages": turns(f"Question {number}?", "word " * (number % 7 * words + 1))} for number in range(count)]


def rewarded(**grpo: Any) -> dict[str, Any]:
    options = {"rewards": [{"metric": "exact_match"}], "max_new_tokens": 64, "group_size": 2} | grpo
    training = {"method": "grpo", "max_steps": 10, "batch_size": 4, "gradient_accumulation_steps": 2, "grpo": options}
    return {"/data/train/0/format": "prompt_only", "/model/precision": "16bit", "/training": training}


def test_a_training_by_reward_is_planned_with_its_answers(model: Path) -> None:
    rows = [{"prompt": f"What is {number} + 1?", "reference": f"{number + 1}"} for number in range(20)]
    short, long = (plan(model, rows, rewarded(max_new_tokens=count), h200=3.0) for count in (16, 128))
    assert short.cheapest
    assert long.cheapest
    seconds = [{stage.name: stage.seconds for stage in each.cheapest.stages}["train"] for each in (short, long)]
    token = 24 * LAYER_SECONDS * TOKEN  # of the host, for a token of each answer of a step
    assert seconds[1] - seconds[0] >= 10 * (128 - 16) * token
    assert long.cheapest.cost == pytest.approx(long.cheapest.seconds / 1200)
    text = as_text(long)
    assert "answers: 80 are given in the training, of at most 128 tokens each" in text
    assert "of references, which are not learned" in text
    assert "The model learns" not in text


@pytest.mark.parametrize(("grpo", "reference", "where"), [
    ({"max_new_tokens": 250}, "2", "/model/max_seq_length"),
    ({}, "word " * 100, "/model/max_seq_length"),
    ({"rewards": [{"metric": "regex", "regex": "(z)"}]}, "2", "/training/grpo/rewards/0"),
])  # fmt: skip
def test_a_plan_refuses_prompts_that_a_run_would(model: Path, grpo: dict[str, Any], reference: str, where: str) -> None:
    rows = [{"prompt": f"What is {number} + 1?", "reference": reference} for number in range(20)]
    with pytest.raises(InputError) as caught:
        plan(model, rows, rewarded(**grpo))
    assert caught.value.faults[0].where == where


def test_a_plan_in_every_form(model: Path) -> None:
    """What spoils a training and stays within the rules: copies, leaks, rows that are cut, rows that teach nothing."""
    rows = [
        *chats(20),
        *chats(2),
        {"messages": turns("Long?", "word " * 90)},
        {"messages": turns("Long " * 90, "never reached")},
    ]
    held_out = write_rows(model.parent / "held_out.jsonl", [*chats(3), {"messages": turns("Another?", "yes")}])
    sources = {"sources": [{"source": str(held_out), "format": "messages"}]}
    changes = {
        "/data/held_out": sources,
        "/data/max_untrained_fraction": 0.5,
        "/export": {"merged": ["16bit"], "gguf": ["q8_0"]},
    }
    found = plan(model, rows, changes, h200=3.5, l4=0.7)
    document = found.document()
    StrictValidator(load_schema("plan")).validate(json.loads(json.dumps(document)))
    seen = document["rows"]
    assert (seen["read_rows"], seen["rows"]["expected"], seen["duplicate_rows"], seen["also_trained"]) == (24, 23, 2, 3)
    assert (seen["truncated_rows"]["expected"], seen["truncated"]) == (1, ["rows.jsonl row 23"])
    assert seen["dropped"] == ["rows.jsonl row 24: the answer is beyond max_seq_length"]
    assert seen["tokens"]["low"] == seen["tokens"]["high"] == sum(found.rows.lengths)
    assert document["training"]["steps"] == math.ceil(23 / document["training"]["rows_per_step"])
    assert document["model"]["parameters"] == pytest.approx(1.5e9, rel=1e-6)
    assert [on["fits"] for on in document["gpus"]] == ["yes"] * len(CARDS)
    assert {step["name"] for step in document["needs"]} >= {"train", "merge", "compare", "quantise"}
    assert {on["gpu"]: on["times"] for on in document["gpus"]}["l4"] == "estimated, not measured"
    costs = {on["gpu"]: on["cost"] for on in document["gpus"] if on["cost"] is not None}
    assert document["cheapest"] == min(costs, key=costs.__getitem__)
    text, page = as_text(found), as_markdown(found)
    assert text.count("⟦") == 3 + 1
    assert document["fetched"]["stages"] == []
    assert f"\n  times on {found.shown.card.name}\n  nothing is fetched over a network\n" in text
    assert "held-out sequences that are trained on, too: 3: what is measured on them is not new to the model" in text
    assert "cheapest that fits: " in text
    assert page.count("\n| H200 | 141 GB | yes |") == 1
    assert "(rows.jsonl row 23)" in text
    assert "(rows.jsonl row 23)" in page


def test_what_is_asked_of_models_and_of_a_judge_is_counted(model: Path) -> None:
    """Held-out rows are fewer than asked for; a judge has a cap; of a benchmark all documents, or so many."""
    judge = {"model": "m", "max_requests": 11, "max_tokens": 9000}
    asked = {"prompts": ["Hello."], "exact_match_rows": 50, "max_new_tokens": 32, "judge": judge}
    found = plan(model, chats(20), {"/data/held_out": {"rows": 5}, "/evaluation": asked})
    document = found.document()
    StrictValidator(load_schema("plan")).validate(json.loads(json.dumps(document)))
    asked_of_both = document["evaluation"]
    assert (asked_of_both["answers"], asked_of_both["answer_tokens"], asked_of_both["readings"]) == (12, 32, 10)
    assert (asked_of_both["judge_requests"], asked_of_both["judge_tokens"]) == (11, 9000)
    assert 0 < asked_of_both["prompt_tokens"] < asked_of_both["read_tokens"] * 12 / 10, "without the answers"
    text = as_text(found)
    assert "  answers of base and tuned model: 12, of at most 32 tokens each" in text
    assert (
        "  judge: at most 11 requests, and one to see that it answers; at most 9,000 tokens; 4 at once, of 3 s each"
        in text
    )
    (baseline,), (evaluate,) = ([each.seconds for each in found.shown.stages if each.name == name]
                                for name in ("baseline", "evaluate"))  # fmt: skip
    assert evaluate == pytest.approx(baseline + REOPEN_SECONDS + 3 * JUDGE_REQUEST_SECONDS), "11 requests, 4 at once"
    more = asked | {"judge": judge | {"max_requests": 1000}}
    uncapped = evaluated(parse({"/data/held_out": {"rows": 5}, "/evaluation": more}).evaluation, [9] * 6, [])
    assert uncapped.judge_requests == 12, "each pair in both orders"


def test_a_sample_has_questions_and_readings_of_mean_length(model: Path) -> None:
    """As many as the whole would have, of which none are drawn."""
    changes = {"/data/held_out": {"rows": 5}, "/evaluation/exact_match_rows": 4}
    whole, part = plan(model, chats(40), changes), plan(model, chats(40), changes, sample=20)
    assert (part.evaluated.answers, part.evaluated.readings) == (whole.evaluated.answers, whole.evaluated.readings)
    assert part.evaluated.read_tokens == pytest.approx(whole.evaluated.read_tokens, rel=0.2)
    assert part.evaluated.prompt_tokens >= whole.evaluated.prompt_tokens


def test_a_token_of_an_answer_is_bounded_by_the_host_or_by_the_memory_of_the_card() -> None:
    """Whether one or sixteen are answered at once."""
    spec = parse({"/model/precision": "16bit"})
    few_layers = replace(LLAMA_8B, parameters=40_000_000_000, layers=4)
    for count in (1, 16):
        answers = Passes(count, 16, 64 * count, 200, 64, TOKEN)
        read = 64 * 2 * 40e9 / (320 * GB)
        assert answers.seconds(spec, few_layers, CARDS["t4"]) == pytest.approx(read, rel=0.01)
        assert answers.seconds(spec, LLAMA_8B, CARDS["h200"]) == pytest.approx(64 * 32 * 0.002, rel=0.01)


def test_what_a_model_is_asked_is_shared_by_the_cards_and_bounded_by_the_spec() -> None:
    """400 questions are ten batches of 40, of which the busiest of four cards has three."""
    spec, card = parse({"/evaluation/prompts": []}), CARDS["h200"]
    asked = TaskRequests(0, answers=400, prompt_tokens=400 * 281, new_tokens=400 * 128)
    alone, shared = (measured_seconds(spec, LLAMA_8B, card, asked, cards) for cards in (1, 4))
    assert shared == pytest.approx(alone * 3 / 10)
    changes = {"/data/held_out": {"rows": 400}, "/evaluation": {"exact_match_rows": 400, "max_minutes": 1}}
    assert alone > 60 == measured_seconds(parse(changes), LLAMA_8B, card, asked)
    read = measured_seconds(spec, LLAMA_8B, card, TaskRequests(8, readings=8, read_tokens=8 * 300))
    assert read == pytest.approx(8 / spec.training.eval_batch_size * 32 * 0.004, rel=0.01)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed here")
def test_without_lm_eval_benchmarks_are_named_and_not_reckoned(model: Path) -> None:
    """As on a laptop without torch, where their absence is no fault of the spec's."""
    tasks = ["arc_easy", {"name": "gsm8k", "limit": 20}]
    spec = parse({"/model/source": str(model), "/evaluation": {"prompts": [], "tasks": tasks}})
    work = see_tasks(spec, model, model).work
    assert [each.asked for each in work] == [None, None]
    found = plan(model, chats(20))
    seen = replace(found, evaluated=replace(found.evaluated, benchmarks=work))
    StrictValidator(load_schema("plan")).validate(json.loads(json.dumps(seen.document())))
    said = as_text(seen)
    assert "; not counted: benchmarks\n" in said
    unknown = "how long that takes is not known without lm-eval (make benchmarks)"
    assert f"benchmark arc_easy, base and tuned model each: all its documents; {unknown}" in said
    assert f"benchmark gsm8k, base and tuned model each: at most 20 documents of each task; {unknown}" in said


def test_of_a_model_on_the_hub_the_weights_stay_there(hub: Hub, model: Path) -> None:
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.name != "model.safetensors"}
    hub.repo("org/base").commit(files | {"model.safetensors": bytes(5000)})
    found = plan(model, chats(3), {"/model/source": "hf://org/base"})
    assert found.size.parameters == 2500
    assert not found.size.local
    assert hub.asked(r"GET .*/config\.json") >= 1
    assert hub.asked(r"GET .*/model\.safetensors") == 0


def test_what_is_fetched_has_its_bytes_and_its_time_at_an_assumed_rate(hub: Hub, model: Path) -> None:
    """In the stages of a run that fetch, in text, page and document; and it is said where nothing is."""
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.name != "model.safetensors"}
    hub.repo("org/base").commit(files | {"model.safetensors": bytes(300_000_000)})
    rows = b"".join(json.dumps(row).encode() + b"\n" for row in chats(2000))
    hub.repo("datasets/org/rows").commit({"train.jsonl": rows})
    there = {"/model/source": "hf://org/base", "/data/train/0/source": "hf://datasets/org/rows"}
    found = plan(model, [], there | {"/output/uri": "s3://bucket/out"})
    document = json.loads(json.dumps(found.document()))
    StrictValidator(load_schema("plan")).validate(document)
    config = document["fetched"]["stages"][1]["bytes"]
    assert document["fetched"] == {
        "bytes": 300_000_000 + len(rows) + config,
        "assumed_bytes_per_second": 100_000_000,
        "stages": [{"stage": "fetch", "bytes": len(rows)}, {"stage": "data", "bytes": config},
                   {"stage": "weights", "bytes": 300_000_000}],
    }  # fmt: skip
    assert 0 < config <= sum(map(len, files.values()))
    (on,) = [each for each in document["gpus"] if each["gpu"] == "h200"]
    assert [each["stage"] for each in on["stages"]] == [
        "fetch", "engine", "data", "weights", "load", "baseline", "train", "evaluate",
    ]  # fmt: skip
    assert [each["seconds"] for each in on["stages"] if each["stage"] == "weights"] == [3.0]
    assert on["seconds"] == pytest.approx(sum(each["seconds"] for each in on["stages"]), abs=0.001)
    said = as_text(found)
    assert re.search(r"which takes 3\.0 s at 100 MB/s; that rate is assumed, not measured$", said, re.MULTILINE)
    assert "; not counted: what is stored over a network\n" in said
    assert re.search(r"^  stage +time +disk +memory +fetched$", said, re.MULTILINE)
    assert re.search(r"^  weights +3\.0 s .* 300\.0 MB$", said, re.MULTILINE)
    assert re.search(r"^\| weights \| 3\.0 s \| .* \| 300\.0 MB \|$", as_markdown(found), re.MULTILINE)


def test_a_sample_holds_the_true_figures_within_its_bounds(model: Path) -> None:
    rows = chats(400, words=3)
    whole, part = plan(model, rows), plan(model, rows, sample=120)
    assert (part.rows.read_rows, part.rows.whole_rows) == (120, 400)
    for name in ("rows", "sequences", "tokens", "trained_tokens", "held_out_rows"):
        true, found = getattr(whole.rows, name), getattr(part.rows, name)
        assert found.low <= true.expected <= found.high, name
        assert found.high - found.low <= 0.2 * true.expected, name
    assert part.schedule.steps == whole.schedule.steps
    StrictValidator(load_schema("plan")).validate(json.loads(json.dumps(part.document())))
    assert plan(model, rows, sample=120).rows.lengths == part.rows.lengths, "the same seed draws the same rows"


def test_a_deadline_is_rendered_from_the_plan_of_this_spec(model: Path) -> None:
    """Twice the slowest GPU that fits, and an hour; nothing of another spec's plan, or of one that fits nowhere."""
    written, raw = model.parent / "plan.json", LAYOUTS["lines"]
    document = plan(model, chats(3)).document() | {"run_id": parse_spec(raw).run_id}
    slow, large = (
        {**document["gpus"][0], **changes} for changes in ({"seconds": 9001.0}, {"fits": "no", "seconds": 9e4})
    )
    written.write_text(json.dumps(document | {"gpus": [*document["gpus"], slow, large]}))
    text = rendered(raw, "job", deadline=str(written))
    assert "activeDeadlineSeconds: 25200\n" in text
    said = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    assert (
        "Deadline: 7 hours for all tries together (twice the 2.5 that are planned for T4, the slowest that fits, and 1)"
        in said
    )
    for other, words in (
        ({"run_id": "0" * 16}, "the plan is that of another spec"),
        ({"gpus": [large]}, "is a plan without a GPU that fits"),
        ({"version": 2}, "is not a plan of this version"),
        ({"gpus": [slow | {"seconds": math.inf}]}, "is neither hours nor a plan"),
        ({"gpus": [slow | {"seconds": 1e9}]}, "is a plan of a run that is too long"),
    ):
        written.write_text(json.dumps(document | other))
        with pytest.raises(SpecError, match=words):
            rendered(raw, "job", deadline=str(written))


def test_general_rows_are_planned_for(model: Path) -> None:
    changes = {"/data/replay": {"fraction": 0.2}, "/evaluation/forgetting": {}}
    plain, found = plan(model, chats(80)), plan(model, chats(80), changes)
    assert found.rows.replay_sequences is not None
    assert (plain.rows.replay_sequences, found.rows.replay_sequences.expected, found.rows.sequences.expected) == (
        None,
        20,
        100,
    )
    assert (plain.schedule.steps, found.schedule.steps) == (10, 13)
    assert "of these general ones, mixed in by data.replay: 20 sequences" in as_text(found)
    StrictValidator(load_schema("plan")).validate(json.loads(json.dumps(found.document())))


def test_what_fits_no_gpu_is_13_after_the_plan_is_said(model: Path) -> None:
    sized_model(model, 200_000_000_000, {"hidden_size": 16384, "num_hidden_layers": 62})
    found = plan(model, chats(3), {"/model/precision": "16bit"})
    failure = found.failure()
    assert isinstance(failure, CapacityError)
    assert failure.exit_code == 13
    assert "expected at most 141 GB" in str(failure)
    assert {on.fits for on in found.cards} == {"no"}
    assert "H200" in as_text(found)


def test_each_card_gets_what_a_run_would_choose_there(model: Path) -> None:
    sized_model(model, 8_000_000_000, {"hidden_size": 4096, "num_hidden_layers": 32})
    long = [{"messages": turns("Q?", "x" * 1500)}] * 8
    batch = {"batch_size": 8, "gradient_accumulation_steps": 1}
    changes = {"/model/max_seq_length": 2048, "/training": batch}
    found = {on.key: on for on in plan(model, long, changes).cards}
    assert {on.fits for on in found.values()} == {"yes"}
    assert (found["h200"].rows, found["h200"].kept_layers) == (8, 32), "there is room to compute nothing twice"
    assert found["t4"].rows * found["t4"].kept_layers < 8 * 32
    assert all(on.needed.expected <= on.card.bytes for on in found.values())
    fixed = {"/training": batch | {"micro_batch": 8, "gradient_checkpointing": False}}
    found = {on.key: on for on in plan(model, long, changes | fixed).cards}
    assert (found["l4"].fits, found["l4"].kept_layers) == ("smaller", 32)
    assert found["l4"].rows < 8
    assert (found["a100-80"].fits, found["a100-80"].rows) == ("tight", 8)
    assert "| A100 80 | 80 GB | tight | 8 | none |" in as_markdown(plan(model, long, changes | fixed))
    part = "\n".join(
        line for line in as_text(plan(model, long, changes)).splitlines() if line.lstrip().startswith("T4")
    )
    assert re.search(r"T4 +16 GB +yes +\d+ +(all|none|\d+ of 32) ", part), part


ROWS = "/data/train/0"
MISTAKES: list[tuple[str, dict[str, Any], list[Row], type[JobError], str]] = [
    ("misspelt key", {"/training/learning_rte": 1}, chats(3), SpecError, "learning_rate"),
    ("no such file", {f"{ROWS}/source": "rowz.jsonl"}, chats(3), InputError, "rowz.jsonl"),
    ("columns of another format", {f"{ROWS}/format": "alpaca"}, chats(3), InputError, "misses columns"),
    ("an answer that is not text", {}, [*chats(9), {"messages": turns("a", 5)}], InputError, "rows.jsonl row 10"),  # type: ignore[arg-type]
    (
        "answers beyond the longest sequence",
        {"/model/max_seq_length": 16},
        chats(3),
        InputError,
        "would hold each of these rows",
    ),
    (
        "a template that fails",
        {"/data/chat_template": "{{ messages[7].content }}"},
        chats(3),
        InputError,
        "/data/chat_template",
    ),
    ("a quantised base to be merged", {"/export": {"gguf": ["q8_0"]}}, chats(3), InputError, "/model/merge_base"),
    ("an adapter as the model", {}, chats(3), PolicyError, "this is an adapter"),
    (
        "more held out than there is",
        {"/data/held_out": {"rows": 5}},
        chats(5),
        InputError,
        "no rows are left to train on",
    ),
    ("a width that the heads do not divide", {}, chats(3), InputError, "transformers can make no model of it"),
    ("layers that no model has", {}, chats(3), InputError, "num_hidden_layers"),
]


@pytest.mark.parametrize(("mistake", "changes", "rows", "kind", "words"), MISTAKES, ids=[name for name, *_ in MISTAKES])
def test_mistakes_are_caught_before_a_gpu(
    mistake: str, changes: dict[str, Any], rows: list[Row], kind: type[JobError], words: str, model: Path
) -> None:
    if mistake == "a quantised base to be merged":
        sized_model(model, 1000, {"quantization_config": {}})
    if mistake == "an adapter as the model":
        (model / "adapter_config.json").write_text("{}")
    if mistake == "layers that no model has":
        sized_model(model, 1000, {"num_hidden_layers": 0})
    if mistake == "a width that the heads do not divide":
        sized_model(model, 1000, {"hidden_size": 4096, "num_attention_heads": 9})
    start = time.process_time()
    with pytest.raises(JobError) as refused:
        plan(model, rows, changes)
    assert time.process_time() - start < 60
    assert type(refused.value) is kind
    assert words in str(refused.value)


def test_the_size_of_a_packed_base_is_that_of_its_16_bit_model(tmp_path: Path) -> None:
    config = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "vocab_size": 128_256,
        "quantization_config": {"load_in_4bit": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = size_of_fetched(tmp_path, 5_702_746_401, local=False)
    assert found.parameters == pytest.approx(8.03e9, rel=0.02)
    assert found.quantised


def test_experts_are_said_to_be_counted_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_local_experts": 8, "dtype": "float32"}))
    found = size_of_fetched(tmp_path, 4000, local=True)
    assert (found.parameters, found.local) == (1000, True)
    assert "times are at most these" in found.origin


@pytest.mark.parametrize("price", ["h999=1", "2,3", "x", "h100=", "-1", "nan"])
def test_prices_are_of_gpus_that_are_known(price: str) -> None:
    with pytest.raises(SpecError):
        parser().parse_args(["plan", "spec.json", f"--price={price}"])


def test_prices_are_read() -> None:
    read = lambda text: parser().parse_args(["plan", "spec.json", "--price", text]).price  # noqa: E731
    assert read("2.49") == {ANY: 2.49}
    assert read("h100=2.49, l4=0.7") == {"h100": 2.49, "l4": 0.7}


def test_the_smallest_spec_can_be_planned_for(model: Path) -> None:
    """With one price for every GPU nothing is cheapest: what costs how much is in the table."""
    found = plan(model, chats(3), {}, **{"": 2.0})
    assert found.cheapest is None
    assert all(on.cost is not None and on.seconds is not None for on in found.cards)
    assert "| cost |" in as_markdown(found)
    assert changed({})["version"] == 1


def test_the_specs_price_is_taken_unless_the_command_has_one(model: Path) -> None:
    """And the plan says whose price it is."""
    own = plan(model, chats(3), {"/resources/price_per_hour": 3.5})
    assert [on.cost for on in own.cards] == [pytest.approx((on.seconds or 0) / 3600 * 3.5) for on in own.cards]
    assert own.document()["priced"] == "the spec's resources.price_per_hour"
    asked = plan(model, chats(3), {"/resources/price_per_hour": 3.5}, l4=0.7)
    assert {on.key: on.price_per_hour for on in asked.cards if on.cost is not None} == {"l4": 0.7}
    said = "--price, not the 3.5 of the spec's resources.price_per_hour"
    assert asked.document()["priced"] == said
    assert f"costs by the price of an hour that you have named: {said}\n" in as_text(asked)
    assert plan(model, chats(3)).document()["priced"] is None
    several = as_text(plan(model, chats(3), {"/resources": {"gpus": 2, "price_per_hour": 3.5}}))
    assert "that you have named, which is taken for that of all GPUs together: the spec's" in several


DEVICE = {"kind": "cuda", "name": "NVIDIA H200", "total_memory_bytes": 150_110_011_392}


@pytest.mark.parametrize(
    ("name", "gib", "key"),
    [("NVIDIA H200", 139.8, "h200"), ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80"),
     ("NVIDIA A100-PCIE-40GB", 39.4, "a100-40"),
     ("NVIDIA H100 80GB HBM3", 79.1, "h100"), ("Tesla T4", 14.6, "t4"),
     ("NVIDIA L4", 22.2, "l4"), ("NVIDIA L40S", 44.4, "l40s"),
     ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090"),
     ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6, None), ("NVIDIA B200", 178.0, None)],
)  # fmt: skip
def test_a_gpu_of_the_plan_is_known_by_what_its_driver_says(name: str, gib: float, key: str | None) -> None:
    assert card_of(name, int(gib * GIB)) == key


def test_a_run_is_held_against_the_plan_that_was_made_of_its_spec(model: Path, tmp_path: Path) -> None:
    rows, changes = chats(40, words=3), {"/export": {"merged": ["16bit"], "gguf": ["q8_0"]}, "/training/batch_size": 8}
    found = plan(model, rows, changes)
    base, _ = fetch_bases(found.spec, tmp_path / "fetched", check_values)
    prepared = prepare(tmp_path, rows, "messages", model, length=256)
    known = expected(found.spec, base, prepared, DEVICE)
    (on,) = [on for on in found.cards if on.key == "h200"]
    assert (known.gpu, known.gpu_peak_bytes) == ("h200", on.needed.expected - GIB)
    assert known.stage_seconds == {
        stage.name: pytest.approx(stage.seconds, abs=0.001) for stage in on.stages if stage.name != "data"
    }
    assert known.host_peak_bytes == max(step.ram_bytes for step in found.needs)
    assert known.disk_peak_bytes == max(step.disk_bytes for step in found.needs)
    other = expected(found.spec, base, prepared, DEVICE | {"name": "NVIDIA B200"})
    assert other == PlannedRun(host_peak_bytes=known.host_peak_bytes, disk_peak_bytes=known.disk_peak_bytes)
    none = expected(found.spec, base, prepared, {"kind": "cpu"})
    assert none == PlannedRun(disk_peak_bytes=known.disk_peak_bytes)


def test_the_tutorials_took_about_what_is_planned_for_them() -> None:
    """What their authors saw, on other GPUs and libraries than the model of times was fitted to: a run is quicker."""
    _, finetome, medqa = common_jobs(ROOT)
    for job, key, seconds in ((finetome, "a100-40", 4.75 * 3600), (medqa, "t4", 4.32 * 60)):
        theirs = replace(job.spec.training, micro_batch=job.spec.training.batch_size,
                         gradient_checkpointing="unsloth", compute="stock")  # fmt: skip
        as_they_did = replace(job, spec=replace(job.spec, training=theirs))
        (train,) = [stage.seconds for stage in as_they_did.on(key, {}).stages if stage.name == "train"]
        assert train == pytest.approx(seconds, rel=0.3)


def test_rows_that_stand_for_others_have_their_lengths() -> None:
    lengths = drawn(2048, 403, 0.6)
    assert sorted(lengths)[len(lengths) // 2] == pytest.approx(403, rel=0.01)
    assert max(lengths) == 2048
    within = sum(403 / math.exp(0.6) <= length <= 403 * math.exp(0.6) for length in lengths)
    assert within / len(lengths) == pytest.approx(0.683, abs=0.005)


def test_the_guide_shows_what_the_command_prints(tmp_path: Path) -> None:
    """Line by line, README.md some lines. How long the rows took to read, and with it what a time is rounded to, is
    this machine's affair, and its cores count in the memory of the exports.
    """
    found = printed(tmp_path)
    varies = re.compile(r"[\d.]+(?= (?:s|min)\b| for the whole run|(?: GB)?$)")
    for page, text in ((GUIDE, found), (README, in_short(found))):
        shown = re.findall(
            r"<!-- plan -->\n```text\n(.*)\n```\n<!-- /plan -->", (ROOT / page).read_text("utf-8"), re.DOTALL
        )[0]
        for ours, theirs in zip(shown.splitlines(), text.splitlines(), strict=True):
            ours, theirs = (varies.sub("#", " ".join(line.split())) for line in (ours, theirs))
            assert ours == theirs, "python -m tests.planned writes it again"


def test_a_folder_is_read_in_a_process_that_keeps_torch_away(tmp_path: Path) -> None:
    """`datasets`, which knows the splits of a folder, takes a torch that is hidden for one that is there."""
    rows = tmp_path / "rows"
    rows.mkdir()
    write_rows(rows / "train.jsonl", [{"messages": turns(f"{number}?", f"{number}!")} for number in range(4)])
    (rows / "dataset_infos.json").write_text("{}")
    spec = changed({"/model/source": str(tiny_dir()), "/data/train/0/source": str(rows)})
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-X", "importtime", "-m", "job", "plan", "spec.json", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["rows"]["read_rows"] == 4
    assert "| datasets\n" in done.stderr
    assert "| torch\n" not in done.stderr
