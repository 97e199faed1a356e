"""Trainings by reward: beside TRL's own trainer, whole, stopped on their way, what is said of them, what is refused."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from job.data.tokenizer import load_tokenizer
from job.errors import InputError, PolicyError
from job.spec import JobSpec
from job.training.methods.grpo import GRPO
from job.training.methods.padding import padded_apart
from job.training.methods.rewards import reward_of
from tests.data_rows import turns, write_rows
from tests.flow.running import Running, run_tiny, tiny, tunejob, valid_stats, write_spec
from tests.flow.test_preference import LORA, TEMPLATE, lines, ran
from tests.forking import environment, run_forked
from tests.judge_server import judge_server
from tests.smollm2 import model_dir
from tests.specs import faults_with, parse
from tests.tiny import random_adapter, tiny_dir

STEPS = 3
ROWS = [
    {"prompt": f"Say {number} in words, the {number % 5}th of five.", "reference": str(number)} for number in range(40)
]
REWARDS = [{"metric": "exact_match"}, {"metric": "length", "at_most": 24, "weight": 0.5}]
GROUPS: dict[str, Any] = {
    "group_size": 4,
    "max_new_tokens": 8,
    "temperature": 0.9,
    "beta": 0.2,
    "epsilon": 0.1,
    "loss_type": "dapo",
}
RATE = 0.003


def changes(folder: Path, rewards: list[dict[str, Any]] = REWARDS, **training: Any) -> dict[str, Any]:
    return {
        "/model/precision": "16bit",
        "/data/train/0": {"source": str(write_rows(folder / "prompts.jsonl", ROWS)), "format": "prompt_only"},
        "/data/held_out": False,
        "/data/shuffle": False,
        "/data/chat_template": TEMPLATE,
        "/lora": dict(LORA),
        "/evaluation/prompts": [],
        "/training": {"method": "grpo", "max_steps": STEPS, "batch_size": 8, "gradient_accumulation_steps": 2,
                      "learning_rate": RATE, "weight_decay": 0.0, "grpo": {"rewards": rewards, **GROUPS}} | training,
    }  # fmt: skip


def stock(folder: Path, **further: Any) -> list[dict[str, float]]:
    folder.mkdir(parents=True)
    named = {"group_size": "num_generations", "max_new_tokens": "max_completion_length"}
    config = {named.get(name, name): value for name, value in GROUPS.items()} | {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
        "learning_rate": RATE, "weight_decay": 0.0, "seed": 3407,
        "optim": "adamw_torch", "reward_weights": [1.0, 0.5], "max_steps": STEPS, "disable_dropout": True,
    } | further  # fmt: skip
    rows = [{"prompt": turns(row["prompt"]), "reference": row["reference"]} for row in ROWS]
    request = {"model": str(tiny_dir()), "template": TEMPLATE, "rows": rows, "end": "<|im_end|>", "config": config,
               "lora": {"r": LORA["r"], "lora_alpha": LORA["alpha"]}}  # fmt: skip
    (folder / "request.json").write_text(json.dumps(request))
    code, said, complaint = run_forked(
        "tests.flow.stock_grpo:main", [str(folder / "request.json")], folder, environment(folder), 300
    )
    assert code == 0, complaint
    return json.loads(said.splitlines()[-1])


def unsaid() -> int:
    """What the prompts are padded with where padding is recognised by its id."""
    tokenizer = load_tokenizer(tiny_dir())
    tokenizer.chat_template = TEMPLATE
    prompts = [
        tokenizer.apply_chat_template(turns(row["prompt"]), add_generation_prompt=True, return_dict=False)
        for row in ROWS
    ]
    used = {token for prompt in prompts for token in prompt} | {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    found: int = padded_apart(tokenizer, used).pad_token_id
    assert found != tokenizer.pad_token_id in used
    return found


@pytest.mark.parametrize("backend", ["peft", pytest.param("unsloth", marks=pytest.mark.long)])
def test_three_steps_are_those_of_trl(backend: str, tmp_path: Path) -> None:
    """The same prompts, drawn answers, rewards, losses and gradients, with the divergence from the base in the loss."""
    ran(tmp_path, changes(tmp_path) | {"/model/backend": backend})
    further = {"generation_kwargs": {"suppress_tokens": [unsaid()]}} if backend == "unsloth" else {}
    ours, theirs = lines(tmp_path / "out"), stock(tmp_path / "stock", **further)
    assert len(ours) == len(theirs) == STEPS
    names = {"rewards/exact_match/mean": "reward_exact_match", "rewards/length/mean": "reward_length",
             "completions/mean_length": "answer_tokens"}  # fmt: skip
    for line, other in zip(ours, theirs, strict=True):
        assert line["grad_norm"] == pytest.approx(other.pop("grad_norm"), rel=1e-4)
        for name, value in other.items():
            assert line[names.get(name, name)] == pytest.approx(value, abs=1e-4), name
    assert len({line["reward"] for line in ours}) > 1
    assert ours[-1]["kl"] > 1e-5


def test_another_model_says_what_answers_are_worth(tmp_path: Path) -> None:
    """It is asked about each answer to a prompt once, and its word is a curve like any reward's."""
    rewards = [
        {"metric": "judge", "judge": {"model": "scripted", "rubric": "Few letters e are good.", "max_requests": 31}}
    ]
    with judge_server(
        lambda chat: f"SCORE: {10 - min(10, chat[-1]['content'].rpartition('<<<ANSWER')[2].count('e'))}"
    ) as server:
        spec = changes(tmp_path, rewards, max_steps=2)
        spec["/training"]["grpo"]["temperature"] = 0.01  # of a group most answers are equal
        ran(tmp_path, spec, server.environment())
    assert all(0 < line["reward_judge"] == line["reward"] < 1 for line in lines(tmp_path / "out"))
    asked = [json.dumps(body["messages"]) for body in server.bodies]
    assert 2 < len(asked) == len(set(asked)) < 31
    assert any("Say 0 in words" in each for each in asked[1:]), "eight are asked at a time, in no order"
    notes = valid_stats(tmp_path / "out" / "stats.json")["data"]["notes"]
    assert any(note.startswith("up to 32 answers are given, and the judge may be asked 31 times") for note in notes)
    assert f"the judge was asked what {len(asked)} answers are worth, with {50 * len(asked)} tokens" in notes


def test_padding_that_is_told_by_its_id_is_none_of_the_prompts_tokens() -> None:
    """A model that pads with what ends its turns gets another special token; if it has used all, it is refused."""
    tokenizer = load_tokenizer(tiny_dir())
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert tokenizer.pad_token_id in special
    assert padded_apart(tokenizer, special - {tokenizer.pad_token_id}) is tokenizer
    left = sorted(special - {tokenizer.pad_token_id})[0]
    apart, before = padded_apart(tokenizer, special - {left}), tokenizer.pad_token_id
    assert (apart.pad_token_id, tokenizer.pad_token_id) == (left, before)
    with pytest.raises(InputError):
        padded_apart(tokenizer, special)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run nobody disturbed, long enough to learn short answers."""
    folder = tmp_path_factory.mktemp("whole")
    ran(folder, learning(folder))
    return folder / "out"


def learning(folder: Path) -> dict[str, Any]:
    rewards = [{"metric": "length", "at_most": 12}, {"metric": "format", "regex": "[a-z ]*", "weight": 0.5}]
    return changes(folder, rewards, max_steps=24, learning_rate=0.03) | {
        "/lora/dropout": 0.1, "/output/checkpoints": {"every_steps": 4},
        "/training/batch_size": 16, "/training/grpo/beta": 0.0,
        "/training/grpo/max_new_tokens": 4,
        "/data/held_out": {"rows": 4}, "/evaluation/exact_match_rows": 4, "/evaluation/prompts": ["Say 3."],
    }  # fmt: skip


def test_a_reward_rises_and_is_told(whole: Path) -> None:
    """In curves, statistics and the page; held-out prompts are asked and compared with their references."""
    stats = valid_stats(whole / "stats.json")
    first, last = stats["training"]["rewards"]["reward"]
    assert last > first + 0.15
    assert {"reward_length", "reward_format", "reward"} <= stats["training"]["rewards"].keys()
    assert all(
        {"reward_length", "reward_format", "alike_groups", "answer_tokens"} <= line.keys() for line in lines(whole)
    )
    assert stats["training"]["tokens"] > 0
    assert {"exact_match", "held_out_loss"} <= stats["evaluation"]["trained"].keys()
    page, card = (whole / "report" / "report.html").read_text(), (whole / "README.md").read_text()
    assert "reward_length" in page
    assert "group relative policy optimisation (GRPO)" in card
    assert not [note for note in stats["data"]["notes"] if "reward has" in note]


def test_a_run_that_is_killed_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    """Drawn answers among it."""
    spec = learning(tmp_path)
    running = Running(("run", write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", spec))), tmp_path / "scratch")
    running.wait_until(lambda r: r.says('"checkpoint", "step": 8'))
    assert running.kill().exit_code == -signal.SIGKILL
    (event,) = ran(tmp_path, spec).named("resume")
    assert event["step"] >= 8
    curve = ("step", "loss", "grad_norm", "reward", "reward_length", "answer_tokens")
    found, wanted = (
        [[line.get(key) for key in curve] for line in lines(output)] for output in (tmp_path / "out", whole)
    )
    assert found == wanted
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_it_goes_on_from_an_adapter_and_compares_with_that(beta: float, tmp_path: Path) -> None:
    adapter = random_adapter(tiny_dir(), tmp_path / "adapter", lora_alpha=8)
    ran(tmp_path, changes(tmp_path, max_steps=2) | {"/model/adapter": str(adapter), "/training/grpo/beta": beta})
    first, second = lines(tmp_path / "out")
    assert ("kl" in first) == bool(beta)
    if beta:
        assert first["kl"] == pytest.approx(0.0, abs=1e-6), "the reference is the policy at its start"
        assert second["kl"] > 1e-7


@pytest.mark.long
def test_a_real_model_learns_form_and_sums_by_reward_alone(tmp_path: Path) -> None:
    """Sums of digits, in one form; it is shown no answer. Held-out sums are asked before and after."""
    pairs = [(first, second) for first in range(1, 10) for second in range(1, 10)]
    random.Random(3).shuffle(pairs)
    rows = [{"prompt": f"What is {a} + {b}?", "reference": f"{a} + {b} = {a + b}"} for a, b in pairs]
    sources = {
        name: {"source": str(write_rows(tmp_path / f"{name}.jsonl", part)), "format": "prompt_only"}
        for name, part in (("train", rows[:65]), ("held", rows[65:]))
    }
    number = "=\\s*(\\d+)"
    rewards = [
        {"metric": "format", "regex": "\\d+ \\+ \\d+ = \\d+\\.?", "weight": 0.3},
        {"metric": "regex", "regex": number, "weight": 0.7},
    ]
    ran(tmp_path, {
        "/model": {"source": str(model_dir()), "precision": "16bit", "max_seq_length": 64, "backend": "peft"},
        "/data/train/0": sources["train"],
        "/data/held_out": {"sources": [sources["held"]]}, "/data/chat_template": "chatml",
        "/lora": {"r": 16, "alpha": 32},
        "/training": {"method": "grpo", "max_steps": 30, "batch_size": 32, "gradient_accumulation_steps": 1,
                      "learning_rate": 3e-4, "lr_scheduler": "constant_with_warmup",
                      "warmup_steps": 3, "weight_decay": 0.0,
                      "grpo": {"rewards": rewards, "group_size": 8, "max_new_tokens": 12, "temperature": 0.9}},
        "/evaluation": {"max_new_tokens": 16, "exact_match_rows": 16, "metrics": ["regex", "exact_match"],
                        "regex": number},
    })  # fmt: skip
    stats = valid_stats(tmp_path / "out" / "stats.json")
    first, last = stats["training"]["rewards"]["reward"]
    assert first < 0.2
    assert last > 0.8
    assert stats["evaluation"]["base"]["regex"] < 0.5
    assert stats["evaluation"]["trained"]["regex"] > 0.8


# ------------------------------------------------------------------------------------------- what is said of rewards


def history(*rewards: float, **further: float) -> list[dict[str, float]]:
    return [{"reward": reward, **further} for reward in rewards]


@pytest.mark.parametrize(("steps", "words"), [
    (history(0.1, 0.4, 0.9), []), (history(0.5, 0.5, 0.5), ["has not risen"]),
    (history(0.5, 0.5, 0.1), ["has fallen, from 0.5 to 0.1"]),
    (history(0.0, 0.0, alike_groups=1.0), ["has not risen", "100 % of the last groups"]),
    (history(1.0, alike_groups=1.0)[:0], []),
    (history(0.2, 0.9, alike_groups=1.0), []),
    (history(0.1, 0.9, cut_answers=0.8), ["80 % of the last answers were cut"]),
])  # fmt: skip
def test_a_reward_that_stalls_or_collapses_is_told(steps: list[dict[str, float]], words: list[str]) -> None:
    said = GRPO.remarks(parse(spec_of({"metric": "contains"})), steps)
    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said, strict=True))


def spec_of(*rewards: dict[str, Any], **further: Any) -> dict[str, Any]:
    return {"/data/train/0/format": "prompt_only", "/model/backend": "peft",
            "/training": {"method": "grpo", "grpo": {"rewards": list(rewards)} | further}}  # fmt: skip


@pytest.mark.parametrize(("reward", "answer", "reference", "worth"), [
    ({"metric": "exact_match"}, "7", "7", 1.0),
    ({"metric": "regex", "regex": "= (\\d+)"}, "so 3 + 4 = 7!", "3 + 4 = 7", 1.0),
    ({"metric": "regex", "regex": "= (\\d+)"}, "= 8", "no number", None),
    ({"metric": "format", "regex": "\\d+"}, "12", "", 1.0),
    ({"metric": "format", "regex": "\\d+"}, "12.", "", 0.0), ({"metric": "length", "at_most": 3}, "abcd", "", 0.0),
    ({"metric": "token_f1"}, "red cat", "red dog", 0.5),
    ({"metric": "json_valid", "json_schema": {"required": ["a"]}}, '{"b": 1}', "", 0.0),
    ({"metric": "contains"}, "it is 7.", "7", 1.0),
])  # fmt: skip
def test_what_an_answer_is_worth(reward: dict[str, Any], answer: str, reference: str, worth: float | None) -> None:
    spec: JobSpec = parse(spec_of(reward))
    assert spec.training.grpo
    assert reward_of(spec.training.grpo.rewards[0], "/here")(answer, reference) == worth


@pytest.mark.parametrize(("changed", "where", "words"), [
    (spec_of(), "/training/grpo/rewards", "too few entries"),
    (spec_of({"metric": "regex"}), "/training/grpo/rewards/0", "needs to know regex"),
    (spec_of({"metric": "regex", "regex": "a"}), "/training/grpo/rewards/0/regex", "no group"),
    (spec_of({"metric": "format", "regex": "("}), "/training/grpo/rewards/0/regex", "not a regular expression"),
    (spec_of({"metric": "length", "at_most": 3, "regex": "a"}), "/training/grpo/rewards/0/regex", "does not read this"),
    (spec_of({"metric": "judge"}), "/training/grpo/rewards/0", "needs to know judge"),
    (spec_of({"metric": "judge", "judge": {"rubric": "short"}}), "/training/grpo/rewards/0/judge/model",
     "required key is missing"),
    (spec_of({"metric": "contains"}, {"metric": "contains"}), "/training/grpo/rewards/1/metric", "each once"),
    (spec_of({"metric": "contains"}, group_size=3), "/training/grpo/group_size", "a divisor of them"),
    (spec_of({"metric": "contains"}, temperature=6), "/training/grpo/temperature", "too large"),
    (spec_of({"metric": "contains"}) | {"/training/eval_steps": 5}, "/training/eval_steps",
     "is not what this method lowers"),
    ({"/training/method": "grpo", "/model/backend": "peft", "/data/train/0/format": "prompt_only"},
     "/training/grpo/rewards", "worth"),
])  # fmt: skip
def test_a_spec_that_says_too_little_or_too_much(changed: dict[str, Any], where: str, words: str) -> None:
    faults = [fault for fault in faults_with(changed) if fault.where == where]
    assert faults, faults_with(changed)
    assert words in str(faults[0])


# ----------------------------------------------------------------------------------------------- a reward of its own

OWN = "def reward(answer, reference):\n    return None if 'x' in answer else len(answer) / 100\n"


def test_an_own_reward_is_code_and_needs_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    rewards = [{"metric": "file", "file": str(path)}]
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", changes(tmp_path, rewards)))
    result = tunejob("validate", spec, scratch=tmp_path / "scratch")
    assert (result.exit_code, result.failure["pointer"]) == (12, "/training/grpo/rewards/0/file")
    asked = parse(spec_of(*rewards)).training.grpo
    assert asked
    with pytest.raises(PolicyError):
        reward_of(asked.rewards[0], "/here")
    monkeypatch.setenv("TUNEJOB_REWARD_FILES", "1")
    worth = reward_of(asked.rewards[0], "/here")
    assert (worth("abcd", ""), worth("x", "")) == (0.04, None)


def test_prompts_without_room_for_an_answer(tmp_path: Path) -> None:
    grpo = {"rewards": REWARDS} | GROUPS | {"max_new_tokens": 120}
    result = run_tiny(tmp_path, changes(tmp_path) | {"/training/grpo": grpo})
    assert (result.exit_code, result.failure["pointer"], result.failure["stage"]) == (
        11,
        "/model/max_seq_length",
        "data",
    )
