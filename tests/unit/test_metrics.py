"""Each metric's figures, against the libraries' own where there are some; choices by likelihood; intervals."""

from __future__ import annotations

import copy
import json
import math
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from job.data.build import Question
from job.errors import PolicyError
from job.evaluation.loss import losses_of
from job.evaluation.metrics import METRICS, Options
from job.evaluation.metrics.json_fields import fields
from job.evaluation.metrics.rouge import common
from job.evaluation.metrics.tool_calls import calls
from job.evaluation.readings import can_keep, log_sums, means, of_rows, sums_of_choices
from job.evaluation.scores import Rows, Wanted, answer_rows, choice_rows, differences, figures, loss_rows, paired
from job.host.bounded import processor_seconds
from job.report.figures import compared, verdict
from tests.forking import ROOT

NOTHING = Options()
ANSWERS = [
    "The cat sat on the mat.",
    "a",
    "Das ist nicht gut !",
    "",
    "no match whatsoever here",
    "It costs $3,000.50 today .",
    "日本語です",
]
WANTED = [
    "The cat sat on a mat.",
    "a b",
    "Das ist gut.",
    "something",
    "else",
    "It costs $3,000.50 today.",
    "日本語だよ",
]

BESIDE = ROOT / ".venv-benchmarks" / "bin" / "python"
# Reads pairs of answer and reference, and prints the three F-measures of each
ROUGE_SCORE = """
import json, sys
from rouge_score.rouge_scorer import RougeScorer
names = ["rouge1", "rouge2", "rougeL"]
scorer = RougeScorer(names)
found = [scorer.score(reference, answer) for answer, reference in json.load(sys.stdin)]
print(json.dumps([[scores[name].fmeasure for name in names] for scores in found]))
"""


def figure(name: str, answers: list[str], references: list[str], options: Options = NOTHING) -> float:
    wanted = Wanted((METRICS[name],), options)
    return figures(answer_rows(wanted, answers, [Question("", [], text) for text in references]))[name]


def one(name: str, answer: str, reference: str, options: Options = NOTHING) -> float | None:
    """The figure of one answer; None where its reference does not fit."""
    counts = METRICS[name].counts(answer, reference, options)
    return None if counts is None else METRICS[name].figure(counts)


# ------------------------------------------------------------------------------------------- as libraries have it


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    for seed in range(4):
        rng = random.Random(seed)
        picked = [rng.randrange(len(ANSWERS)) for _ in range(12)] if seed else list(range(len(ANSWERS)))
        answers, references = [ANSWERS[i] for i in picked], [WANTED[i] for i in picked]
        assert figure("bleu", answers, references) == pytest.approx(
            BLEU().corpus_score(answers, [references]).score, abs=1e-6
        )
        assert figure("chrf", answers, references) == pytest.approx(
            CHRF().corpus_score(answers, [references]).score, abs=1e-6
        )


def test_they_are_those_of_its_command_line(tmp_path: Path) -> None:
    for name, lines in (("answers", ANSWERS), ("references", WANTED)):
        (tmp_path / name).write_text("\n".join(lines) + "\n", "utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "answers", "-m", "bleu", "chrf", "-b", "-w", "6"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True)
    found = [figure(name, ANSWERS, WANTED) for name in ("bleu", "chrf")]
    assert json.loads(done.stdout) == pytest.approx(found, abs=1e-6)
    assert 20 < min(found) < max(found) < 80


# Answer, reference and rougeL's F-measure of rouge-score 0.1.2, without its stemmer.
ROUGE = [
    ("The cat sat on the mat today.", "The cat sat on a mat.", 0.769230769),
    ("police killed the gunman", "the gunman kill police", 0.5),
    ("a b c d e f g", "g f e d c b a", 0.142857143),
    ("It's 3.5 km, or 2-3 hours", "3.5 km: it's about 2 or 3 hours", 0.631578947),
    ("", "some reference", 0.0),
    ("the the the the", "the cat the dog the", 0.666666667),
    ("snake_case and CamelCase", "snake case AND camelcase words", 0.888888889),
    ("one two three four five six seven eight nine ten", "ten one two nine three four eight five six seven", 0.7),
]


@pytest.mark.parametrize(("answer", "reference", "expected"), ROUGE)
def test_rouge_l_is_that_of_rouge_score(answer: str, reference: str, expected: float) -> None:
    assert one("rouge_l", answer, reference) == pytest.approx(expected, abs=1e-9)


# The same, of rouge1 and rouge2.
OF_RUNS = [
    ("the cat sat on the mat", "the cat lay on the mat", 0.833333333, 0.6),
    ("a b a b a b", "a b b a", 0.8, 0.5),
    ("one", "one two three", 0.5, 0.0),
    ("", "words", 0.0, 0.0),
    ("Hello, World! 42.", "hello world 42", 1.0, 1.0),
    ("the the the", "the cat the", 0.666666667, 0.0),
]


@pytest.mark.parametrize(("answer", "reference", "single", "pairs"), OF_RUNS)
def test_rouge_1_and_2_are_those_of_rouge_score(answer: str, reference: str, single: float, pairs: float) -> None:
    found = [one(name, answer, reference) for name in ("rouge_1", "rouge_2")]
    assert found == pytest.approx([single, pairs], abs=1e-9)


@pytest.mark.skipif(not BESIDE.exists(), reason="rouge-score is in .venv-benchmarks, which make test makes")
def test_any_english_words_have_the_figures_of_rouge_score_itself() -> None:
    rng = random.Random(0)
    words = ["a", "b", "the", "cat", "Dog's", "it-is", "x_y", "12", "3.5", "U.S.", "don't", ",", "!"]
    pairs = [[" ".join(rng.choices(words, k=rng.randint(0, 15))) for _ in "ab"] for _ in range(500)]
    pairs = [[answer, f"end {reference}"] for answer, reference in pairs]  # a reference has a word
    done = subprocess.run(
        [BESIDE, "-c", ROUGE_SCORE], input=json.dumps(pairs), capture_output=True, check=True, text=True
    )
    found = [[one(name, *pair) for name in ("rouge_1", "rouge_2", "rouge_l")] for pair in pairs]
    for ours, theirs in zip(found, json.loads(done.stdout), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-9)
    assert len({round(value, 6) for row in found for value in row if value}) > 100


def test_rouge_l_knows_letters_that_rouge_score_drops() -> None:
    assert one("rouge_l", "Größe und Maß", "größe und Gewicht") == pytest.approx(2 / 3)
    assert one("rouge_l", "日本語", "日本語") == 1.0


def test_the_longest_common_sequence_is_that_of_the_table_of_prefixes() -> None:
    rng = random.Random(3)
    for _ in range(100):
        first, second = (rng.choices("abcd", k=rng.randint(0, 80)) for _ in range(2))
        assert common(first, second) == table_of_prefixes(first, second)


def table_of_prefixes(first: list[str], second: list[str]) -> int:
    above = [0] * (len(second) + 1)
    for a in first:
        row = [0]
        for place, b in enumerate(second):
            row.append(above[place] + 1 if a == b else max(row[-1], above[place + 1]))
        above = row
    return above[-1]


# SQuAD's own evaluation: normalised, then F1 of the words that both have.
SQUAD = [
    ("The Cat.", "cat", 1.0),
    ("in the year 1066", "1066", 0.5),
    ("Denver Broncos", "the Denver Broncos of Colorado", 2 * (2 / 2) * (2 / 4) / (2 / 2 + 2 / 4)),
    ("cat cat", "cat", 2 * 0.5 * 1 / 1.5),
    ("a", "the", 1.0),
    ("a", "dog", 0.0),
    ("dog", "", 0.0),
]


@pytest.mark.parametrize(("answer", "reference", "expected"), SQUAD)
def test_token_f1_is_squads(answer: str, reference: str, expected: float) -> None:
    assert one("token_f1", answer, reference) == pytest.approx(expected)


# --------------------------------------------------------------------------------------------------- our own words

REGEX = Options(regex=r"####\s*(-?\d+)|answer is (\w+)")
SCHEMA = Options(
    json_schema={
        "type": "object",
        "required": ["n"],
        "properties": {"n": {"$ref": "#/$defs/n"}},
        "$defs": {"n": {"type": "integer"}},
    }
)
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": [true]}}\n</tool_call>'


@pytest.mark.parametrize(
    ("name", "answer", "reference", "options", "expected"),
    [
        ("exact_match", " a b\n", "a b", NOTHING, 1),
        ("exact_match", "a  b", "a b", NOTHING, 0),
        ("exact_match", "A b", "a b", NOTHING, 0),
        ("contains", "It is a b.", " a b ", NOTHING, 1),
        ("contains", "It is A b.", "a b", NOTHING, 0),
        ("contains", "anything", " ", NOTHING, None),
        ("regex", "so 4, #### 42 #### 1", "…\n####42", REGEX, 1),
        ("regex", "42", "#### 42", REGEX, 0),
        ("regex", "#### 42", "42", REGEX, None),
        ("regex", "#### 42", "answer is b", REGEX, None),
        ("json_valid", ' {"n": [1, 2.0, null]}\n', "", NOTHING, 1),
        ("json_valid", '```json\n{"n": 1}\n```', "", NOTHING, 0),
        ("json_valid", '{"n": NaN}', "", NOTHING, 0),
        ("json_valid", "[" * 100_000, "", NOTHING, 0),
        ("json_valid", '{"n": 1}', "", SCHEMA, 1),
        ("json_valid", '{"n": "1"}', "", SCHEMA, 0),
        ("json_valid", "1" * 5000, "", SCHEMA, 0),
        ("json_fields", '{"b": 2, "a": {"c": [1.0, "x"]}}', '{"a": {"c": [1, "x"]}, "b": 2}', NOTHING, 1),
        ("json_fields", '{"a": 1, "b": true, "d": 1}', '{"a": 1, "b": 1, "c": 3}', NOTHING, 0.25),
        ("json_fields", "sorry", '{"a": 1}', NOTHING, 0),
        ("json_fields", '{"a": 1}', '"a"', NOTHING, None),
        ("json_fields", '{"a": {}}', '{"a": []}', NOTHING, 0),
        ("tool_names", f"Sure. {CALL}", CALL, NOTHING, 1),
        ("tool_calls", f"Sure. {CALL}", CALL, NOTHING, 1),
        ("tool_names", CALL.replace("1", "2"), CALL, NOTHING, 1),
        ("tool_calls", CALL.replace("1", "2"), CALL, NOTHING, 0),
        ("tool_calls", CALL.replace("1", "1.0"), CALL, NOTHING, 1),
        ("tool_calls", CALL.replace("true", "1"), CALL, NOTHING, 0),
        ("tool_names", CALL * 2, CALL, NOTHING, 0),
        ("tool_names", "{" * 2000, CALL, NOTHING, 0),
        ("tool_calls", CALL, "just text {}", NOTHING, None),
    ],
)
def test_an_answer_is_judged(name: str, answer: str, reference: str, options: Options, expected: float | None) -> None:
    assert one(name, answer, reference, options) == expected


def test_calls_are_found_in_what_templates_write() -> None:
    written = {
        '{"name": "f", "parameters": {"a": 1}}': [("f", {"a": 1})],  # Llama 3
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]': [
            ("f", {"a": 1}),
            ("g", {}),
        ],  # Mistral
        '{"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}]}': [
            ("f", {"a": 1})
        ],  # OpenAI
        '{"name": "Anna"} {not json} {"name": 1, "arguments": {}}': [],
    }
    for text, expected in written.items():
        assert calls(text) == expected, text


def test_fields_are_what_has_no_parts() -> None:
    assert fields({"a": [1, {"b": None}], "c": {}}) == {("a", 0): 1, ("a", 1, "b"): None, ("c",): {}}


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs_answers])
def test_the_reference_itself_has_the_highest_figure(name: str) -> None:
    options = Options(regex='"name": "(.)"', json_schema={"type": "object"})
    text = '{"name": "f", "arguments": {"city": "Oslo"}}'
    assert one(name, text, text, options) == pytest.approx(METRICS[name].highest)


# ------------------------------------------------------------------------------------- patterns that never end


def test_a_pattern_that_never_ends_is_refused_by_its_place() -> None:
    began = time.process_time()
    with pytest.raises(PolicyError, match="no end after 3 seconds") as caught:
        one("regex", "a" * 60 + "b", "aaa", Options(regex="^(a+)+$"))
    assert caught.value.faults[0].where == "/evaluation/regex"
    assert time.process_time() - began < 10
    assert one("regex", "aa", "aa", Options(regex="^(a+)+$")) == 1, "nothing of the bound is left"


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "^(a+)+$"},
        {
            "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}},
            "$ref": "#/$defs/d0",
        },
    ],
)
def test_so_is_a_schema(schema: dict[str, Any]) -> None:
    with pytest.raises(PolicyError), processor_seconds(0.2, "/evaluation/json_schema"):
        METRICS["json_valid"].of_answer('"' + "a" * 60 + 'b"', "", Options(json_schema=schema))  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------------- choices


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
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.5, **shape)).eval()


def by_hand(model: Any, prompt: list[int], rest: list[int]) -> float:
    import torch

    with torch.no_grad():
        said = model(torch.tensor([prompt + rest])).logits[0].log_softmax(-1)
    return statistics.fmean(float(said[len(prompt) + i - 1, token]) for i, token in enumerate(rest))


def test_choices_have_the_mean_log_probability_of_their_tokens(model: Any) -> None:
    asked = [([1, 2, 3], [[7], [8], [9, 10, 11]]), ([4], [[5], [6], [7]]), ([9] * 12, [[3, 4], [3, 5], [3]])]
    questions = [Question("", prompt, "", choices, 0, len(prompt)) for prompt, choices in asked]
    questions.insert(1, Question("", [1], "none of them"))
    for batch in (1, 3, 16):
        found = means(questions, sums_of_choices(model, questions, batch, 0))
        assert found.pop(1) == []
        for values, (prompt, choices) in zip(found, asked, strict=True):
            assert values == pytest.approx([by_hand(model, prompt, rest) for rest in choices], rel=1e-4)


def test_a_choice_whose_first_letters_are_in_the_prompts_last_token_is_compared_from_there(model: Any) -> None:
    questions = [Question("", [1, 2, 3], "", [[3, 4], [30]], 0, 2)]
    (values,) = means(questions, sums_of_choices(model, questions, 4, 0))
    assert values == pytest.approx([by_hand(model, [1, 2], [3, 4]), by_hand(model, [1, 2], [30])], rel=1e-4)


@pytest.mark.parametrize("kept", [False, True])
def test_the_sum_over_learned_tokens_is_the_loss_of_a_row(model: Any, kept: bool) -> None:
    rows = [
        {"input_ids": ids, "labels": [-100] * learned + ids[learned:]}
        for ids, learned in (([1, 2, 3, 4], 2), ([5, 6] * 5, 1), ([9, 8], 1))
    ]
    sums = log_sums(model, of_rows(rows), 2, 0, kept=kept)
    losses = [loss or (0.0, 0.0) for loss in losses_of(model, rows, 3, 0)]
    assert [-own for (own,) in sums] == pytest.approx([nats for nats, _ in losses], rel=1e-4)
    assert [len(reading.wanted[0]) for reading in of_rows(rows)] == [count for _, count in losses] == [2, 9, 1]


def test_an_architecture_that_knows_no_single_logits_gives_all(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    assert can_keep(model)
    assert can_keep(get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"])))
    readings, forward = of_rows([{"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]}]), model.forward
    wanted = log_sums(model, readings, 1, 0)
    monkeypatch.setattr(
        model, "forward", lambda input_ids, attention_mask: forward(input_ids=input_ids, attention_mask=attention_mask)
    )
    assert not can_keep(model)
    assert log_sums(model, readings, 1, 0, kept=True) == wanted


def test_choice_is_the_share_of_questions_whose_reference_is_likeliest() -> None:
    questions = [Question("", [], "", [[1]] * 3, right) for right in (0, 2, 1)] + [Question("", [], "")]
    likely = [[-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [-2.0, -1.0, -1.0], []]
    rows = choice_rows(Wanted((METRICS["choice"],), NOTHING), likely, questions)
    assert rows == {"choice": [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0), None]}
    assert figures(rows) == {"choice": round(2 / 3, 6)}


# ------------------------------------------------------------------------------------------------------- intervals


def shares(values: list[float]) -> Rows:
    return [(value, 1.0) for value in values]


def test_the_interval_of_a_mean_is_the_one_of_its_standard_error() -> None:
    rng = random.Random(4)
    base = [float(rng.random() < 0.4) for _ in range(400)]
    tuned = [value if rng.random() < 0.8 else 1.0 for value in base]
    found = differences({"exact_match": shares(base)}, {"exact_match": shares(tuned)}, 7)["exact_match"]
    gains = [after - before for before, after in zip(base, tuned, strict=True)]
    for name, values in (("base", base), ("trained", tuned), ("interval", gains)):
        mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
        assert found[name] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=0.3 * error), name
    assert (found["rows"], found["of"], found["difference"]) == (400, 400, round(statistics.fmean(gains), 6))
    assert found == differences({"exact_match": shares(base)}, {"exact_match": shares(tuned)}, 7)["exact_match"]
    assert found != differences({"exact_match": shares(base)}, {"exact_match": shares(tuned)}, 8)["exact_match"]


def test_the_same_rows_of_both_are_drawn() -> None:
    """Rows differ much, models little: only in pairs is that a difference."""
    base = [(10.0 * row, 10.0) for row in range(40)]
    tuned = [(nats - 0.5, tokens) for nats, tokens in base]
    found = differences(loss_rows(base), loss_rows(tuned), 1)
    loss = found["held_out_loss"]
    assert loss["interval"] == pytest.approx([-0.05, -0.05])
    assert loss["base"][1] - loss["base"][0] > 5
    assert loss["trained"][0] < loss["base"][1], "the two overlap"
    assert verdict("held_out_loss", loss) == "better"
    assert found["perplexity"]["interval"][1] < 0


def test_figures_of_whole_corpora_have_intervals_too() -> None:
    wanted = Wanted((METRICS["bleu"], METRICS["chrf"]), NOTHING)
    questions = [Question("", [], text) for text in WANTED * 4]
    base, tuned = answer_rows(wanted, ANSWERS * 4, questions), answer_rows(wanted, WANTED * 4, questions)
    for name, found in differences(base, tuned, 3).items():
        before = figures(base)[name]
        assert found["base"][0] < before < found["base"][1] < found["trained"][0] == pytest.approx(100)
        assert found["interval"][0] > 0
        assert found["difference"] == pytest.approx(100 - before, abs=1e-5)


def test_rows_that_one_of_them_lacks_count_for_neither() -> None:
    base, tuned = paired({"contains": [(1.0, 1.0), None, (0.0, 1.0)]}, {"contains": [None, (1.0, 1.0), (1.0, 1.0)]})
    assert (figures(base), figures(tuned)) == ({"contains": 0.0}, {"contains": 1.0})
    found = differences(base, tuned, 1)
    assert found == {"contains": {"rows": 1, "of": 3, "difference": 1.0}}, "no interval of a single row"
    assert differences(*paired({"contains": [None]}, {"contains": [(1.0, 1.0)]}), 1) == {}


@pytest.mark.parametrize(
    ("name", "interval", "expected"),
    [
        ("exact_match", [-0.1, 0.2], "no difference"),
        ("exact_match", [0.0, 0.2], "no difference"),
        ("exact_match", [0.1, 0.2], "better"),
        ("exact_match", [-0.2, -0.1], "worse"),
        ("held_out_loss", [0.1, 0.2], "worse"),
        ("held_out_loss", [-0.2, -0.1], "better"),
    ],
)
def test_where_0_is_between_the_bounds_no_difference_is_said(name: str, interval: list[float], expected: str) -> None:
    about = {"rows": 9, "of": 12, "difference": 0.1, "interval": interval, "base": [0, 1], "trained": [0, 1]}
    found = compared({"evaluation": {"base": {name: 0.5}, "trained": {name: 0.6}, "differences": {name: about}}})
    assert found is not None
    (row,) = found.rows
    assert row.cells[3:] == (expected, "9 of 12")
    assert row.cells[2] == f"0.1 ({interval[0]:g} to {interval[1]:g})"
