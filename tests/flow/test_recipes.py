"""The three recipes of `schemas/examples/`, scaled down to SmolLM2 and a few rows: real weights, real losses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.flow.running import ROOT, Result, document, strict, tiny, tunejob, valid_stats, write_spec
from tests.flow.test_machines import ROUNDING, lived_in
from tests.smollm2 import model_dir

pytestmark = pytest.mark.slow

REAL_ROWS = ROOT.parent / "shared" / "data"
OWN_ROWS = Path(__file__).parent / "rows"
ROWS = 4  # so that four steps of two rows see each row twice
LONGEST_ROW_CHARACTERS = 700


@dataclass(frozen=True)
class Recipe:
    """An example, its rows (real or the project's own), and the loss of the first step with each, as measured."""

    example: str
    real: str
    own: str
    first_loss_real: float
    first_loss_own: float


RECIPES = {
    "finetome": Recipe("finetome-llama31-8b", "fastchat_dummy_conversation.json", "finetome.json", 3.3952, 2.4744),
    "alpaca": Recipe("alpaca-llama3-8b", "alpaca_en_demo.json", "alpaca.json", 2.1233, 2.8088),
    "medqa": Recipe("medqa-llama32-1b", "medqa_usmle_5opt.jsonl", "medqa.jsonl", 1.5230, 1.7068),
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The first few rows that are short enough for a CPU."""
    text = path.read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    return [row for row in rows if len(json.dumps(row)) <= LONGEST_ROW_CHARACTERS][:ROWS]


def scaled_down(recipe: Recipe, rows: Path, output: Path, backend: str) -> dict[str, Any]:
    """The example with the model, rows, length and number of steps of a CPU; all but the exports is its own."""
    spec = document(ROOT / "schemas" / "examples" / f"{recipe.example}.json")
    del spec["$schema"]
    spec["model"] |= {"source": str(model_dir()), "max_seq_length": 256, "backend": backend}
    spec["model"].pop("merge_base", None)
    spec.pop("export", None)  # tests/flow/test_exports.py
    source = {key: value for key, value in spec["data"]["train"][0].items() if key != "split"}
    spec["data"] |= {"train": [source | {"source": str(rows)}], "packing": False}
    spec["training"] |= {
        "max_steps": 4,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 1,
        "logging_steps": 1,
    }
    spec["training"] |= {"learning_rate": 1e-3, "gradient_checkpointing": "unsloth" if backend == "unsloth" else False}
    spec["training"].pop("epochs", None)
    spec["evaluation"]["max_new_tokens"] = 2
    return spec | {"output": {"uri": str(output)}}


class Runs:
    """Runs each recipe once, however many tests look at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result = cache(self._result)

    def output(self, name: str, backend: str) -> Path:
        return self.folder / f"{name}-{backend}" / "out"

    def _result(self, name: str, backend: str) -> Result:
        recipe = RECIPES[name]
        folder = self.folder / f"{name}-{backend}"
        folder.mkdir()
        path = folder / "rows.jsonl"
        rows = rows_of(REAL_ROWS / recipe.real if is_real(recipe) else OWN_ROWS / recipe.own)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        spec = write_spec(folder / "spec.json", scaled_down(recipe, path, folder / "out", backend))
        extra = lived_in(folder) if backend == "unsloth" else None
        return tunejob("run", spec, scratch=folder / "scratch", extra=extra, cwd=folder if extra else ROOT)


def is_real(recipe: Recipe) -> bool:
    return (REAL_ROWS / recipe.real).is_file()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("recipes"))


@pytest.mark.long  # test_demo.py has a first loss in make test
@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_learns(name: str, runs: Runs) -> None:
    backend = "unsloth"
    result = runs.result(name, backend)
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-3000:]
    losses = steps_of(runs.output(name, backend))
    expected = RECIPES[name].first_loss_real if is_real(RECIPES[name]) else RECIPES[name].first_loss_own
    assert len(losses) == 4
    assert losses[0] == pytest.approx(expected, rel=0.005), losses
    assert sum(losses[2:]) < sum(losses[:2]) - 0.3, losses
    stats = valid_stats(runs.output(name, backend) / "stats.json")
    assert stats["data"]["train"]["rows"] == ROWS
    trained, every = stats["data"]["train"]["trained_tokens"], stats["data"]["train"]["tokens"]
    assert trained < every / 2 if name == "medqa" else trained > 0.9 * every


def steps_of(output: Path) -> list[float]:
    return [strict(line)["loss"] for line in (output / "report" / "losses.jsonl").read_text().splitlines()]


def require_the_same(ours: Path, theirs: Path) -> None:
    """Of two runs that differ by their engine: every step's loss, the answers, and the weights as they are reopened."""
    losses = [steps_of(output) for output in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=ROUNDING), losses  # 4e-5 where it was measured
    for output, backend in ((ours, "unsloth"), (theirs, "peft")):
        effective = valid_stats(output / "stats.json")["effective"]
        assert (effective["backend"], effective["compute_dtype"]) == (backend, "float32")
    answers = [(output / "report" / "answers.json").read_bytes() for output in (ours, theirs)]
    assert answers[0] == answers[1]


def test_the_reference_engine_gives_the_same_losses_whatever_others_left(tmp_path: Path) -> None:
    """Plain transformers and PEFT, with no module of Unsloth.

    Unsloth's run has a home, a directory and settings that tell it to compute in half precision. Where the CPU has
    AVX512-BF16, bitsandbytes sees it and offers to compute with it; no variable can claim it where it has not.
    """
    results = []
    for backend, checkpointing in (("unsloth", "unsloth"), ("peft", False)):
        folder = tmp_path / backend
        folder.mkdir()
        changes = {
            "/model/backend": backend,
            "/training/gradient_checkpointing": checkpointing,
            "/training/max_steps": 6,
        }
        spec = write_spec(folder / "spec.json", tiny(folder / "out", changes | {"/training/logging_steps": 1}))
        extra = lived_in(folder) if backend == "unsloth" else None
        results.append(tunejob("run", spec, scratch=folder / "scratch", extra=extra, cwd=folder if extra else ROOT))
        assert results[-1].exit_code == 0, results[-1].stdout[-2000:] + results[-1].stderr[-3000:]
    for result in results:
        assert [event["max_logit_difference"] <= 1e-6 for event in result.named("reload")] == [True]
    require_the_same(tmp_path / "unsloth" / "out", tmp_path / "peft" / "out")


@pytest.mark.long
def test_the_reference_engine_gives_the_same_losses_on_a_recipe(runs: Runs) -> None:
    for backend in ("unsloth", "peft"):
        result = runs.result("medqa", backend)
        assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-3000:]
    require_the_same(runs.output("medqa", "unsloth"), runs.output("medqa", "peft"))
