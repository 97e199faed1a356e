"""One run on the tiny model with every metric, and one that has no time to answer: figures in every document, computed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from job.evaluation.metrics import METRICS
from job.ledger.manifest import read_manifest
from job.store import open_store
from tests.flow.running import Result, run_tiny, valid_stats
from tests.tiny import tiny_dir

pytestmark = pytest.mark.slow
LETTERS = ["A", "B", "C"]
ROWS = 12
MEASURED = {name for name, metric in METRICS.items() if metric.of_margin is None}
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
            "/data/held_out": {"sources": [{"source": str(held_out), "format": "messages"}]},
            "/evaluation": {"prompts": ["Hello."], "max_new_tokens": 6, "exact_match_rows": ROWS, **evaluation},
        },
    )


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("every")
    gates = [{"metric": "chrf", "gain_at_least": -100}, {"metric": "choice", "at_least": 0, "of": ["trained"]}]
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
        assert set(found) == MEASURED
        assert found["bleu"] == pytest.approx(BLEU().corpus_score(said, [references]).score, abs=1e-6)
        assert found["chrf"] == pytest.approx(CHRF().corpus_score(said, [references]).score, abs=1e-6)
        contained = [reference in text for text, reference in zip(said, references, strict=True)]
        assert found["contains"] == pytest.approx(sum(contained) / ROWS, abs=1e-6)


def test_choice_is_what_the_base_itself_finds_likeliest(every: tuple[Path, Result]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.float32), AutoTokenizer.from_pretrained(tiny_dir())
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


def test_the_adapter_is_measured_on_the_answers_it_gives_anyway(every: tuple[Path, Result]) -> None:
    stats = valid_stats(every[0] / "stats.json")
    found = stats["delivered"]["artefacts"]
    assert stats["delivered"]["rows"]["unanswered"] == []
    assert set(found["adapter"]) == {*MEASURED, "kl", "same_top_token"} - {"choice"}, "nothing more is asked"
    assert found["adapter"]["chrf"] == pytest.approx(found["trained"]["chrf"], abs=1e-6)
    assert found["trained"]["choice"] == stats["evaluation"]["trained"]["choice"]


def test_the_manifest_has_differences_with_their_bounds(every: tuple[Path, Result]) -> None:
    output, _ = every
    differences = valid_stats(output / "stats.json")["evaluation"]["differences"]
    results = read_manifest(open_store(str(output))).results
    assert set(results["difference"]) == set(differences) == MEASURED
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
        rows = [line for line in page.read_text("utf-8").splitlines() if "no difference" in line and line.startswith("|")]
        assert [line.split(" | ")[0] for line in rows] == [f"| {METRICS[name].title}" for name in same]
        (choice,) = (line for line in page.read_text("utf-8").splitlines() if line.startswith("| Choice"))
        assert choice.endswith(f"| {ROWS // 2} of {ROWS} |")


def test_three_answers_of_each_model_are_in_the_log(every: tuple[Path, Result]) -> None:
    output, result = every
    heard = result.named("answer")
    assert [event["stage"] for event in heard] == ["baseline"] * 3 + ["evaluate"] * 3
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
    assert set(stats["evaluation"]["trained"]) == {"held_out_loss", "perplexity", "choice"}
    assert stats["delivered"]["rows"]["unanswered"] == list(range(ROWS))
    assert "exact_match" not in stats["delivered"]["artefacts"]["adapter"]
    assert [answer["reference"] for answer in all_answers(tmp_path / "out")] == [None], "the spec's prompt is answered all the same"
