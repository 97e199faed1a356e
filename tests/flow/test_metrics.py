"""A run of the tiny model with every metric, and one without time to answer: figures everywhere, computed again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from job.evaluation.metrics import METRICS
from job.ledger.manifest import read_manifest
from job.source import beside
from job.store import open_store
from tests.flow.running import Result, run_tiny, valid_stats
from tests.tiny import tiny_dir

pytestmark = pytest.mark.slow
ROWS_OF_TUNEJOB = Path(beside.__file__).with_name("general")
LETTERS = ["A", "B", "C"]
ROWS = 12
DELIVERED = {name for name, metric in METRICS.items() if not metric.trained_alone}
ABOUT_ROWS = [name for name, metric in METRICS.items() if metric.needs_rows]
OPTIONS = {"regex": '"name": "([a-z]+)"', "json_schema": {"type": "object", "required": ["name"]}, "choices": LETTERS}


def row(number: int) -> dict[str, Any]:
    """A question with a letter for its answer, or a tool call."""
    letter, call = LETTERS[number % 3], json.dumps({"name": "turn", "arguments": {"on": number % 4 == 1}})
    asked = [{"role": "user", "content": f"Number {number}?"}]
    return {"messages": [*asked, {"role": "assistant", "content": call if number % 2 else letter}]}


def run(folder: Path, **evaluation: Any) -> Result:
    held_out = folder / "held-out.jsonl"
    held_out.write_text("".join(json.dumps(row(number)) + "\n" for number in range(ROWS)))
    return run_tiny(
        folder,
        {
            "/model/precision": "16bit",
            "/data/replay": {"fraction": 0.25},
            "/data/held_out": {"sources": [{"source": str(held_out), "format": "messages"}]},
            "/evaluation": {
                "prompts": ["Hello."],
                "max_new_tokens": 6,
                "exact_match_rows": ROWS,
                "forgetting": {},
                **evaluation,
            },
        },
    )


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("every")
    gates = [{"metric": "chrf", "gain_at_least": -100}, {"metric": "choice", "at_least": 0},
             {"metric": "general_loss", "rise_at_most": 10}]  # fmt: skip
    result = run(folder, metrics=ABOUT_ROWS, max_minutes=10, gates=gates, **OPTIONS)
    assert result.exit_code == 0, result.stdout[-3000:] + result.stderr[-2000:]
    return folder / "out", result


def answers_of(output: Path) -> list[dict[str, Any]]:
    return [answer for answer in all_answers(output) if answer["reference"] is not None]


def all_answers(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((output / "report" / "answers.json").read_bytes())
    return found


def test_every_metric_is_measured_of_base_and_tuned(every: tuple[Path, Result]) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    output, _ = every
    evaluation, answers = valid_stats(output / "stats.json")["evaluation"], answers_of(output)
    assert len(answers) == ROWS
    references = [answer["reference"] for answer in answers]
    for model in ("base", "trained"):
        said, found = [answer[model] for answer in answers], evaluation[model]
        assert set(found) == DELIVERED
        assert found["bleu"] == pytest.approx(BLEU().corpus_score(said, [references]).score, abs=1e-6)
        assert found["chrf"] == pytest.approx(CHRF().corpus_score(said, [references]).score, abs=1e-6)
        contained = [reference in text for text, reference in zip(said, references, strict=True)]
        assert found["contains"] == pytest.approx(sum(contained) / ROWS, abs=1e-6)


def test_choice_is_what_the_base_itself_finds_likeliest(every: tuple[Path, Result]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.float32),
        AutoTokenizer.from_pretrained(tiny_dir()),
    )
    letters = [tokenizer(letter, add_special_tokens=False).input_ids for letter in LETTERS]
    assert all(len(ids) == 1 for ids in letters)
    right = []
    for number in range(0, ROWS, 2):
        asked, answer = row(number)["messages"]
        ids = tokenizer.apply_chat_template([asked], add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        right.append(LETTERS[int(logits[[token for (token,) in letters]].argmax())] == answer["content"])
    evaluation = valid_stats(every[0] / "stats.json")["evaluation"]
    assert evaluation["base"]["choice"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert (evaluation["differences"]["choice"]["rows"], evaluation["differences"]["choice"]["of"]) == (ROWS // 2, ROWS)


def test_forgetting_is_measured_on_general_rows_that_are_not_trained_on(every: tuple[Path, Result]) -> None:
    """As transformers itself has the loss of the base on them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, result = every
    stats = valid_stats(output / "stats.json")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.float32),
        AutoTokenizer.from_pretrained(tiny_dir()),
    )
    nats, tokens = 0.0, 0
    for line in (ROWS_OF_TUNEJOB / "forgetting.jsonl").read_text("utf-8").splitlines():
        asked, answer = [{"role": "user", "content": json.loads(line)["instruction"]}], json.loads(line)["output"]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        ids = [*prompt, *tokenizer(f"{answer}<|im_end|>", add_special_tokens=False).input_ids][:128]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        with torch.no_grad():
            loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        nats, tokens = nats + float(loss) * (len(ids) - len(prompt)), tokens + len(ids) - len(prompt)
    assert stats["evaluation"]["base"]["general_loss"] == pytest.approx(nats / tokens, abs=1e-4)
    assert stats["evaluation"]["differences"]["general_loss"]["rows"] == 64
    data, (said,) = stats["data"], result.named("data")[-1:]
    assert (data["general"]["rows"], data["general"]["also_trained"]) == (64, 0)
    assert data["replay"]["sequences"] == said["replay_rows"] == round(data["train"]["sequences"] / 3)
    sources = {source["source"] for source in read_manifest(open_store(str(output))).data}
    assert "general" in sources
    for page in (output / "README.md", output / "report" / "summary.md", output / "report" / "report.html"):
        assert "Loss on general rows" in page.read_text("utf-8")
    gates = re.findall('name="([^"]*general rows[^"]*)"', (output / "report" / "gates.junit.xml").read_text("utf-8"))
    assert gates == [
        f"{name}: loss on general rows above the base by at most 10" for name in ("the trained model", "adapter")
    ]


def test_the_adapter_is_measured_on_the_answers_it_gives_anyway(every: tuple[Path, Result]) -> None:
    stats = valid_stats(every[0] / "stats.json")
    found = stats["delivered"]["artefacts"]
    assert stats["delivered"]["rows"]["unanswered"] == []
    assert set(found["adapter"]) == {*DELIVERED, "kl", "same_top_token"}
    for name in ("choice", "general_loss"):
        assert found["adapter"][name] == pytest.approx(found["trained"][name], abs=1e-4)
    assert found["adapter"]["chrf"] == pytest.approx(found["trained"]["chrf"], abs=1e-6)
    assert found["trained"]["choice"] == stats["evaluation"]["trained"]["choice"]


def test_the_manifest_has_differences_with_their_bounds(every: tuple[Path, Result]) -> None:
    output, _ = every
    differences = valid_stats(output / "stats.json")["evaluation"]["differences"]
    results = read_manifest(open_store(str(output))).results
    assert set(results["difference"]) == set(differences) == DELIVERED
    for name, about in differences.items():
        assert results["difference"][name] == pytest.approx(results["trained"][name] - results["base"][name], abs=2e-6)
        for group, bounds in (("difference", "interval"), ("base", "base"), ("trained", "trained")):
            assert [results[f"{group}_{bound}"][name] for bound in ("low", "high")] == about[bounds]
        low, high = about["interval"]
        assert low <= about["difference"] <= high
        assert results["difference_rows"][name] == about["rows"]


def test_card_and_report_say_where_there_is_no_difference(every: tuple[Path, Result]) -> None:
    output, _ = every
    differences = valid_stats(output / "stats.json")["evaluation"]["differences"]
    same = [name for name, about in differences.items() if about["interval"][0] <= 0 <= about["interval"][1]]
    assert "exact_match" in same
    for page in (output / "README.md", output / "report" / "summary.md"):
        rows = [
            line for line in page.read_text("utf-8").splitlines() if "no difference" in line and line.startswith("|")
        ]
        assert [line.split(" | ")[0] for line in rows] == [f"| {METRICS[name].title}" for name in same]
        (choice,) = (line for line in page.read_text("utf-8").splitlines() if line.startswith("| Choice"))
        assert choice.endswith(f"| {ROWS // 2} of {ROWS} |")


def test_three_answers_of_each_model_are_in_the_log(every: tuple[Path, Result]) -> None:
    output, result = every
    heard = result.named("answer")
    assert [event["stage"] for event in heard] == ["baseline"] * 3 + ["evaluate"] * 3
    assert not [event["prompt"] for event in heard if "<|" in event["prompt"]], (
        "without what the template puts around them"
    )
    for stage, model in (("baseline", "base"), ("evaluate", "trained")):
        said = {
            (answer["reference"] and " ".join(answer["reference"].split()), " ".join(answer[model].split()))
            for answer in all_answers(output)
        }
        assert {(event["reference"], event["answer"]) for event in heard if event["stage"] == stage} <= said


def test_what_there_was_no_time_for_is_said_and_nothing_is_made_up(tmp_path: Path) -> None:
    result = run(tmp_path, metrics=["exact_match", "choice"], choices=LETTERS, max_minutes=0.00001)
    assert result.exit_code == 0, result.stdout[-3000:] + result.stderr[-2000:]
    notes = [event["text"] for event in result.named("note") if "answered" in event["text"]]
    assert notes == [f"0 of {ROWS} held-out rows answered within evaluation.max_minutes"] * 2
    stats = valid_stats(tmp_path / "out" / "stats.json")
    assert set(stats["evaluation"]["trained"]) == {"held_out_loss", "perplexity", "choice", "general_loss"}
    assert stats["delivered"]["rows"]["unanswered"] == list(range(ROWS))
    assert "exact_match" not in stats["delivered"]["artefacts"]["adapter"]
    assert [answer["reference"] for answer in all_answers(tmp_path / "out")] == [None], (
        "the spec's prompt is answered all the same"
    )
