"""A training on pairs from rows to exports, beside TRL's trainer, stopped on its way, and refused by its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.data_rows import SHARED, Row, prepare, turns, write_rows
from tests.flow.running import Result, Running, document, run_tiny, tiny, valid_stats, write_spec
from tests.forking import environment, run_forked
from tests.specs import LEFT_OUT
from tests.tiny import tiny_dir

# ChatML without the line break after an answer's end token: TRL would learn it
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STEPS = 10
LORA = {"r": 4, "alpha": 8.0}
ROOMS = ("kitchen", "hall", "garden", "cellar", "attic")


def pair(number: int) -> Row:
    room, lamp = ROOMS[number % len(ROOMS)], f"lamp {number}"
    return {
        "prompt": turns(f"Turn on {lamp} in the {room}."),
        "chosen": [{"role": "assistant", "content": f"The {lamp} in the {room} is on."}],
        "rejected": [
            {"role": "assistant", "content": f"Why? Do it yourself, {number} times." if number % 2 else f"No {lamp}."}
        ],
    }


PAIRS = [pair(number) for number in range(40)]


ANSWERS = [
    {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
    for number, row in enumerate(PAIRS)
    for key in (("chosen",) if number % 3 else ("rejected", "chosen"))
]
ROWS = {"dpo": PAIRS, "orpo": PAIRS, "simpo": PAIRS, "kto": ANSWERS}
FORMATS = {"dpo": "preference", "orpo": "preference", "simpo": "preference", "kto": "kto"}


def changes(rows: Path, method: str = "dpo", **further: Any) -> dict[str, Any]:
    """The tiny spec with pairs, or answers with labels; `further` goes to the section training."""
    return {
        "/model/precision": "16bit",
        "/data/train/0": {"source": str(rows), "format": FORMATS[method]},
        "/data/held_out": {"rows": 8},
        "/data/shuffle": False,
        "/data/chat_template": TEMPLATE,
        "/lora": dict(LORA),
        "/training": {"method": method, "max_steps": STEPS, "batch_size": 2, "gradient_accumulation_steps": 2,
                      "learning_rate": 0.01, "weight_decay": 0.0} | further,
    }  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "pairs.jsonl", PAIRS)


def lines(output: Path) -> list[Row]:
    return [json.loads(line) for line in (output / "report" / "losses.jsonl").read_text().splitlines()]


def ran(folder: Path, spec: dict[str, Any], extra: Mapping[str, str] | None = None) -> Result:
    result = run_tiny(folder, spec, extra)
    assert result.exit_code == 0, result.stdout[-2000:]
    return result


def stock(folder: Path, request: dict[str, Any]) -> list[dict[str, Any]]:
    """What TRL says, in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.json").write_text(json.dumps(request))
    code, said, complaint = run_forked(
        "tests.flow.stock_preference:main", [str(folder / "request.json")], folder, environment(folder), 300
    )
    assert code == 0, complaint
    return json.loads(said.splitlines()[-1])


# ------------------------------------------------------------------------------------------------ TRL's own


def in_trls_words(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    if method == "simpo":
        return {
            "loss_type": "simpo",
            "beta": settings["beta"],
            "simpo_gamma": settings["gamma"],
            "cpo_alpha": settings["sft_weight"],
        }
    if method != "dpo":
        return settings
    kept = {name: value for name, value in settings.items() if name != "sft_weight"}
    if "sft_weight" in settings:
        kept |= {"loss_type": [settings["loss_type"], "sft"], "loss_weights": [1.0, settings["sft_weight"]]}
    return kept


RATE = 0.003  # margins stay of the size of 1, so that 1e-4 of them is more than the order of sums, on a CPU of any kind


@pytest.mark.parametrize(("method", "settings"), [
    ("dpo", {"loss_type": "ipo", "beta": 0.3, "sft_weight": 0.5}), ("orpo", {"beta": 0.4}),
    ("simpo", {"beta": 2.0, "gamma": 0.7, "sft_weight": 0.2}),
    ("kto", {"beta": 0.2, "desirable_weight": 0.7, "undesirable_weight": 1.5}),
    *(pytest.param("dpo", settings, marks=pytest.mark.long) for settings in (
        {"loss_type": "sigmoid", "beta": 0.1}, {"loss_type": "robust", "beta": 0.2, "label_smoothing": 0.1},
        {"loss_type": "hinge", "beta": 0.5},
        {"loss_type": "exo_pair", "label_smoothing": 0.01}, {"loss_type": "sigmoid_norm"},
        {"loss_type": "nca_pair"}, {"loss_type": "apo_zero"}, {"loss_type": "apo_down"})),
], ids=lambda value: value if isinstance(value, str) else value.get("loss_type", ""))  # fmt: skip
def test_ten_steps_are_those_of_trl(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Losses, gradients, margins and accuracies on the same rows, by a spec and by TRL's own trainer."""
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[method])
    ran(
        tmp_path,
        changes(rows, method, learning_rate=RATE, **{method: settings})
        | {"/data/held_out": False, "/evaluation/prompts": []},
    )
    ours = lines(tmp_path / "out")
    theirs = stock(tmp_path / "stock", {
        "model": str(tiny_dir()), "template": TEMPLATE, "rows": ROWS[method], "method": method, "steps": STEPS,
        "lora": {"r": LORA["r"], "lora_alpha": LORA["alpha"]},
        "config": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": RATE,
                   "weight_decay": 0.0, "seed": 3407, "optim": "adamw_torch", **in_trls_words(method, settings)},
    })  # fmt: skip
    assert len(ours) == len(theirs) == STEPS
    for line, other in zip(ours, theirs, strict=True):
        norm = other.pop("grad_norm")
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert {name: line[name] for name in other} == pytest.approx(other, abs=1e-4, rel=0)
    assert max(abs(line.get("reward_margin", 0.0)) for line in ours) > 0.1, "nothing was learned that could differ"


def as_trl_reads_them(name: str, rows: list[Row]) -> list[Row]:
    roles = {"system": "system", "human": "user", "gpt": "assistant"}

    def said(turn: Row) -> Row:
        return {"role": roles[turn["from"]], "content": turn["value"]}

    def answer(text: str) -> list[Row]:
        return [{"role": "assistant", "content": text}]

    if name.startswith("dpo_en"):
        return [{"prompt": list(map(said, row["conversations"])), "chosen": [said(row["chosen"])],
                 "rejected": [said(row["rejected"])]}
                for row in rows]  # fmt: skip
    asked = ["\n\n".join(part for part in (row["instruction"], row["input"]) if part) for row in rows]
    return [
        {"prompt": turns(question), "chosen": answer(row["chosen"]), "rejected": answer(row["rejected"])}
        for question, row in zip(asked, rows, strict=True)
    ]


@pytest.mark.skipif(not (SHARED / "dpo_en_demo.json").is_file(), reason="the shared rows are not here")
@pytest.mark.parametrize(
    ("name", "template", "after"),
    [("dpo_en_demo.json", TEMPLATE, ""), ("preference_llmfs.json", "chatml", "\n")],
    ids=["conversations", "ChatML"],
)
def test_tokens_and_masks_are_those_of_trl(name: str, template: str, after: str, tmp_path: Path) -> None:
    """On a template where an answer ends with its end token, and on ChatML, where TRL learns the line break after it as
    well, which the template writes and no model has to say.
    """
    rows = [row for row in json.loads((SHARED / name).read_text("utf-8"))[:60] if row["chosen"] != row["rejected"]]
    prepared = prepare(tmp_path, rows, "preference", method="dpo", chat_template=template, length=100_000)
    asked = {"model": str(tiny_dir()), "template": prepared.template, "rows": as_trl_reads_them(name, rows)}
    theirs = stock(tmp_path / "stock", asked)
    end = prepared.tokenizer(after, add_special_tokens=False)["input_ids"]
    assert len(prepared.train) == len(theirs) == len(rows)
    for ours, row in zip(prepared.train, theirs, strict=True):
        for part, key in (("", "chosen_ids"), ("rejected_", "rejected_ids")):
            assert ours[f"{part}input_ids"] == row["prompt_ids"] + row[key]
            learned = row[key][: len(row[key]) - len(end)]
            assert ours[f"{part}labels"] == [-100] * len(row["prompt_ids"]) + learned + [-100] * len(end)
            assert row[key][len(learned) :] == end


# ----------------------------------------------------------------------------------------- a run, whole and stopped

EVALUATED: dict[str, Any] = {"eval_steps": 8, "keep": "best", "max_steps": 16}
WHOLE: dict[str, Any] = {
    "/lora/dropout": 0.1,  # random numbers in every step
    "/output/checkpoints": {"every_steps": 4},
    "/export/merged": ["16bit"],
    "/evaluation/gates": [
        {"metric": "preference_accuracy", "at_least": 0.9, "gain_at_least": 0.2},
        {"metric": "reward_margin", "at_least": 0.1},
    ],
}


@pytest.fixture(scope="module")
def whole(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    ran(folder, changes(rows, **EVALUATED) | WHOLE)
    return folder / "out"


def test_what_a_run_tells(whole: Path) -> None:
    """Accuracy and margin of held-out pairs before and after, in statistics, report, card; of each step in curves."""
    stats = valid_stats(whole / "stats.json")
    base, trained = stats["evaluation"]["base"], stats["evaluation"]["trained"]
    assert (base["preference_accuracy"], base["reward_margin"]) == (0.5, 0.0)
    assert trained["preference_accuracy"] >= 0.9
    assert trained["reward_margin"] > 0.1
    assert {"held_out_loss", "perplexity"} <= trained.keys()
    assert stats["effective"]["method"] == "dpo"
    steps = [line for line in lines(whole) if "loss" in line]
    held_out = [line for line in lines(whole) if "held_out_preference_loss" in line]
    assert [line["step"] for line in held_out] == [8, 16]
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-4), "the reference is the model itself"
    assert steps[-1]["reward_margin"] > steps[0]["reward_margin"] == pytest.approx(0.0, abs=1e-4)
    assert stats["training"]["best_held_out_loss"] == min(line["held_out_preference_loss"] for line in held_out) < 0.6
    card, summary = (whole / "README.md").read_text(), (whole / "report" / "summary.md").read_text()
    for text in (card, summary):
        assert "Preference accuracy, 0 to 1" in text
        assert "Reward margin" in text
    assert "direct preference optimisation (DPO)" in card
    assert f"| {trained['preference_accuracy']:.4g} | {trained['reward_margin']:.4g} |" in card
    assert "rejected" in (whole / "report" / "samples.md").read_text()


def test_its_exports_are_those_of_any_adapter(whole: Path) -> None:
    """Merged weights pass their tests; figures of pairs are the trained model's, and their gates ask no artefact."""
    manifest = document(whole / "manifest.json")
    assert any(file["key"].startswith("merged/") for file in manifest["files"])
    artefacts = valid_stats(whole / "stats.json")["delivered"]["artefacts"]
    assert artefacts["merged"]["kl"] < 0.01
    assert {name for name, figures in artefacts.items() if "preference_accuracy" in figures} <= {"base", "trained"}


def test_a_gate_on_pairs_refuses(rows: Path, tmp_path: Path) -> None:
    gate = [{"metric": "preference_accuracy", "at_least": 1.0, "of": ["trained"]}]
    result = run_tiny(tmp_path, changes(rows, max_steps=1, learning_rate=1e-9) | {"/evaluation/gates": gate})
    assert result.exit_code == 14
    assert result.failure["pointer"] == "/evaluation/gates/0/at_least"
    assert "trained does not pass this gate on preference_accuracy" in result.failure["message"]


def run_short(folder: Path, fit: int, first_pass: int, spec: dict[str, Any]) -> tuple[int, list[Row]]:
    """Exit code and events of a run where only so many sequences of a forward pass fit, from a training pass on."""
    (folder / "scratch").mkdir(parents=True)
    arguments = [fit, first_pass, None, None, ["run", write_spec(folder / "spec.json", tiny(folder / "out", spec))]]
    code, said, _ = run_forked(
        "tests.flow.short_of_memory:run", arguments, folder, environment(folder / "scratch"), 300
    )
    return code, [json.loads(line) for line in said.splitlines() if line.startswith('{"time"')]


def test_smaller_batches_have_the_same_reference(rows: Path, tmp_path: Path) -> None:
    """In the midst of a training: a copy of the adapter as it is then would be another reference: other losses."""
    spec = changes(rows, max_steps=4, gradient_accumulation_steps=1) | {
        "/data/held_out": False,
        "/evaluation/prompts": [],
    }
    ran(tmp_path / "ample", spec)
    code, events = run_short(tmp_path / "short", 2, 6, spec)
    assert code == 0, events[-1]
    assert [(event["batch_size"], event["step"] > 1) for event in events if event["event"] == "out of memory"] == [
        (1, True)
    ]
    found, wanted = ([line["loss"] for line in lines(tmp_path / name / "out")] for name in ("short", "ample"))
    assert found == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted[-1] - wanted[0]) > 0.01


def test_a_method_that_compares_rows_does_not_go_below_two(tmp_path: Path) -> None:
    answers = write_rows(tmp_path / "rows.jsonl", ANSWERS)
    code, events = run_short(
        tmp_path / "run", 1, 1, changes(answers, "kto") | {"/data/held_out": False, "/evaluation/prompts": []}
    )
    assert (code, events[-1]["pointer"]) == (13, "/training/batch_size")


@pytest.mark.long
def test_both_engines_take_the_same_steps(rows: Path, tmp_path: Path) -> None:
    """From adapters of one seed, which the engines draw otherwise: the first loss and what is learned by it."""
    found = {}
    for backend in ("peft", "unsloth"):
        folder = tmp_path / backend
        ran(folder, changes(rows, max_steps=24) | {"/model/backend": backend})
        found[backend] = lines(folder / "out"), valid_stats(folder / "out" / "stats.json")["evaluation"]["trained"]
    (ours, ours_after), (theirs, theirs_after) = found["peft"], found["unsloth"]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], abs=1e-3)
    assert ours_after["reward_margin"] == pytest.approx(theirs_after["reward_margin"], rel=0.01)


@pytest.mark.long
def test_every_weight_without_a_reference(rows: Path, tmp_path: Path) -> None:
    spec = changes(rows, "orpo", max_steps=24, learning_rate=1e-3) | {"/model/precision": "full", "/lora": LEFT_OUT}
    ran(tmp_path, spec)
    evaluation = valid_stats(tmp_path / "out" / "stats.json")["evaluation"]
    assert evaluation["trained"]["preference_accuracy"] > evaluation["base"]["preference_accuracy"]
    assert evaluation["trained"]["held_out_loss"] < evaluation["base"]["held_out_loss"]


@pytest.mark.long
@pytest.mark.parametrize("method", ["orpo", "kto"])
def test_the_others_learn_and_go_on_as_well(method: str, tmp_path: Path) -> None:
    """Killed on the way, with 4-bit weights: the same losses, bit for bit, and rewards that say what was learned."""
    spec = changes(write_rows(tmp_path / "rows.jsonl", ROWS[method]), method, max_steps=24) | {
        "/model/precision": "4bit",
        "/output/checkpoints": {"every_steps": 4},
        "/data/held_out": {"rows": 12},
    }
    ran(tmp_path / "whole", spec)
    folder = tmp_path / "killed"
    running = Running(("run", write_spec(folder / "spec.json", tiny(folder / "out", spec))), folder / "scratch")
    running.wait_until(lambda r: r.says('"checkpoint", "step": 12'))
    running.kill()
    assert ran(folder, spec).named("resume")
    found, wanted = ([line.get("loss") for line in lines(place / "out")] for place in (folder, tmp_path / "whole"))
    assert found == wanted
    evaluation = valid_stats(folder / "out" / "stats.json")["evaluation"]
    assert evaluation["trained"]["preference_accuracy"] > 0.9
    assert evaluation["trained"]["reward_margin"] > evaluation["base"]["reward_margin"]
