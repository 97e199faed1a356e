"""Trainings that go on from an adapter: what they begin with and compare with, stopped on their way, and refused."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from job.errors import InputError, JobError, PolicyError
from job.report.compare import RunComparison, compare
from job.report.markdown import figure
from job.source.given_adapter import fetch_adapter, require_base
from job.training.start import require_fits
from tests.data_rows import write_rows
from tests.flow.running import Running, document, run_tiny, tiny, tunejob, valid_stats, write_spec
from tests.flow.test_preference import LORA, PAIRS, STEPS, TEMPLATE, changes, lines, ran, run_short, stock
from tests.specs import parse
from tests.tiny import random_adapter, tiny_dir

RATE = 0.001
SECOND: dict[str, Any] = {"/lora/r": 4, "/lora/alpha": 8.0, "/training/max_steps": 12}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "pairs.jsonl", PAIRS)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a first round."""
    folder = tmp_path_factory.mktemp("first")
    ran(folder, SECOND | {"/data/chat_template": TEMPLATE, "/model/precision": "16bit"})
    return folder / "out"


def label(comparison: RunComparison, below: Path) -> str:
    (run,) = (run for run in comparison.runs if Path(run.output).is_relative_to(below))
    return run.label


def from_first(first: Path, rows: Path, **training: Any) -> dict[str, Any]:
    """DPO that goes on from it."""
    return changes(rows, **training) | {
        "/model/adapter": str(first),
        "/data/held_out": False,
        "/evaluation/prompts": [],
    }


def test_a_second_round_begins_where_the_first_has_ended(first: Path, tmp_path: Path) -> None:
    """It is measured as its base, and the same rows begin lower than from the base alone; the documents know it."""
    ran(
        tmp_path / "on",
        SECOND | {"/data/chat_template": TEMPLATE, "/model/precision": "16bit", "/model/adapter": str(first)},
    )
    on, before = (valid_stats(path / "stats.json") for path in (tmp_path / "on" / "out", first))
    for metric in ("held_out_loss", "perplexity"):
        assert on["evaluation"]["base"][metric] == pytest.approx(before["evaluation"]["trained"][metric], rel=1e-5)
    assert on["training"]["first_loss"] < before["training"]["first_loss"] - 1
    assert on["evaluation"]["trained"]["held_out_loss"] < before["evaluation"]["trained"]["held_out_loss"] - 0.1
    manifest, run_id = document(tmp_path / "on" / "out" / "manifest.json"), document(first / "manifest.json")["run_id"]
    assert manifest["base"]["adapters"][0]["run_id"] == run_id
    assert manifest["base"]["adapters"][0]["source"] == str(first)
    assert on["effective"]["adapter"] == f"out of run {run_id}"
    for page in ("README.md", "report/summary.md"):
        assert "the base with the adapter it went on from" in (tmp_path / "on" / "out" / page).read_text()
    assert on["evaluation"]["before"] == {
        "run_id": run_id,
        "figures": before["evaluation"]["trained"],
        "held_out": {name: before["data"]["held_out"][name] for name in ("rows", "tokens", "trained_tokens")},
    }
    loss = [figure(found["evaluation"][name]["held_out_loss"]) for found, name in ((before, "trained"), (on, "base"))]
    shown = figure(on["evaluation"]["trained"]["held_out_loss"])
    summary = (tmp_path / "on" / "out" / "report" / "summary.md").read_text()
    assert f"| Held-out loss, nats a token | {loss[0]} | {loss[1]} | {shown} |" in summary.replace("**", "")
    assert "the same number of rows and tokens as this run's" in summary
    html = (tmp_path / "on" / "out" / "report" / "report.html").read_text()
    assert "Since the run before</h3>" in html
    assert f"The run before is {run_id}; " in html
    both = compare([str(first), str(tmp_path / "on" / "out")], None, {})
    first_run, second_run = label(both, first), label(both, tmp_path / "on")
    assert f"{second_run} went on from the adapter of {first_run}: what it has gained is since that" in both.notes
    assert f"`out of run {run_id}` to go on from" in (tmp_path / "on" / "out" / "README.md").read_text()
    assert tunejob("verify", str(tmp_path / "on" / "out"), scratch=tmp_path / "verified").exit_code == 0


def test_ten_steps_of_pairs_are_those_of_trl(first: Path, rows: Path, tmp_path: Path) -> None:
    """The reference is the policy at its start, the base with the given adapter; no copy of it is stored."""
    ran(tmp_path, from_first(first, rows, learning_rate=RATE))
    ours = lines(tmp_path / "out")
    theirs = stock(tmp_path / "stock", {
        "model": str(tiny_dir()), "template": TEMPLATE, "rows": PAIRS,
        "method": "dpo", "steps": STEPS, "adapter": str(first / "adapter"),
        "config": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": RATE,
                   "weight_decay": 0.0, "seed": 3407, "optim": "adamw_torch"},
    })  # fmt: skip
    for line, other in zip(ours, theirs, strict=True):
        assert line["grad_norm"] == pytest.approx(other.pop("grad_norm"), rel=1e-4)
        assert {name: line[name] for name in other} == pytest.approx(other, abs=1e-4, rel=0)
    assert ours[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert max(line["reward_margin"] for line in ours) > 0.1, "nothing was learned that could differ"
    assert {path.name for path in (tmp_path / "out" / "adapter").iterdir() if path.is_dir()} == set()
    given, stored = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (first, tmp_path / "out"))
    assert given.keys() == stored.keys()


def test_a_run_that_is_killed_goes_on_with_the_same_reference(first: Path, rows: Path, tmp_path: Path) -> None:
    spec = from_first(first, rows, max_steps=8) | {"/output/checkpoints": {"every_steps": 2}}
    ran(tmp_path / "whole", spec)
    running = Running(("run", write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", spec))), tmp_path / "scratch")
    running.wait_until(lambda r: r.says('"checkpoint", "step": 4'))
    assert running.kill().exit_code == -signal.SIGKILL
    assert ran(tmp_path, spec).named("resume")
    found, wanted = ([line["loss"] for line in lines(place / "out")] for place in (tmp_path, tmp_path / "whole"))
    assert found == wanted
    adapters = [
        (place / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
        for place in (tmp_path, tmp_path / "whole")
    ]
    assert adapters[0] == adapters[1]
    code, events = run_short(tmp_path / "short", 2, 6, from_first(first, rows, max_steps=8))
    assert code == 0, events[-1]
    assert [line["loss"] for line in lines(tmp_path / "short" / "out")] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.long
def test_both_engines_begin_alike(first: Path, rows: Path, tmp_path: Path) -> None:
    found = {}
    for backend in ("peft", "unsloth"):
        ran(tmp_path / backend, from_first(first, rows, max_steps=4) | {"/model/backend": backend})
        found[backend] = [line["loss"] for line in lines(tmp_path / backend / "out")]
    assert found["peft"][0] == pytest.approx(0.693147, abs=1e-4)
    assert found["peft"] == pytest.approx(found["unsloth"], abs=1e-3), "one adapter, no random numbers"


# ------------------------------------------------------------------------------------------------------ refused


def changed_settings(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def fetched(adapter: Path, tmp_path: Path, **lora: Any) -> Any:
    given = parse({f"/lora/{key}": value for key, value in (LORA | lora).items()}).lora
    assert given
    return fetch_adapter(str(adapter), given, tmp_path / "work")


@pytest.mark.parametrize(("lora", "said"), [
    ({"r": 8}, ("/lora/r", "8", "4, as the adapter")), ({"alpha": 16.0}, ("/lora/alpha", "16.0", "12, as the adapter")),
    ({"alpha": 12, "targets": ["q_proj"]}, ("/lora/targets", '["q_proj"]', "k_proj")),
    ({"alpha": 12, "rslora": True}, ("/lora/rslora", "true", "false, as the adapter")),
    ({"alpha": 12, "modules_to_save": ["lm_head"]}, ("/lora/modules_to_save", '["lm_head"]', "[], as the adapter")),
])  # fmt: skip
def test_settings_that_differ_are_named_with_both_values(
    lora: dict[str, Any], said: tuple[str, str, str], tmp_path: Path
) -> None:
    adapter = random_adapter(tiny_dir(), tmp_path / "adapter")
    with pytest.raises(InputError) as failure:
        fetched(adapter, tmp_path, **lora)
    fault = next(fault for fault in failure.value.faults if fault.where == said[0])
    assert (fault.found, said[2] in fault.expected) == (said[1], True)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(("damage", "kind", "words"), [
    (pickled, PolicyError, "not in a form the job loads"), (cut, InputError, "is not whole"),
    (lambda folder: (folder / "adapter_config.json").unlink(), InputError, "there is no adapter"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), InputError, "has no weights"),
    (lambda folder: changed_settings(folder, peft_type="IA3"), InputError, "not a LoRA adapter"),
    (lambda folder: changed_settings(folder, rank_pattern={"q_proj": 2}), InputError, "a spec cannot name"),
], ids=["pickled", "cut", "none", "no weights", "another kind", "ranks of its own"])  # fmt: skip
def test_what_is_no_adapter_is_refused(damage: Any, kind: type[JobError], words: str, tmp_path: Path) -> None:
    adapter = random_adapter(tiny_dir(), tmp_path / "adapter")
    damage(adapter)
    with pytest.raises(kind, match=words):
        fetched(adapter, tmp_path, alpha=12)


def test_a_runs_adapter_is_verified_before_it_is_read(first: Path, tmp_path: Path) -> None:
    """A bit of the weights, a manifest that is damaged, a run that has not finished."""
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    stats = copy / "stats.json"
    stats.write_text((whole := stats.read_text()).replace('"held_out_loss"', '"exact_match"', 1))
    with pytest.raises(InputError, match="is not the file that the run has published"):
        fetched(copy, tmp_path / "stats")
    stats.write_text(whole)
    weights = copy / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match="is not the file that the run has published"):
        fetched(copy, tmp_path)
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text().replace("tiny", "tinz", 1))
    with pytest.raises(InputError, match=r"manifest.json is damaged"):
        fetched(copy, tmp_path / "again")
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="the run there has not finished"):
        fetched(copy, tmp_path / "third")


def test_another_base_is_refused_by_name_commit_and_shape(tmp_path: Path) -> None:
    adapter = random_adapter(tiny_dir(), tmp_path / "adapter")
    commit = "a" * 40
    changed_settings(adapter, base_model_name_or_path="org/Small-1B", revision=commit)
    found = fetched(adapter, tmp_path, alpha=12)
    for good in (("org/Small-1B", commit), ("mirror/small-1b-unsloth-bnb-4bit", "b" * 40), ("some-folder", None)):
        require_base(found, *good)
    for bad, where in ((("org/Large-8B", commit), "/model/adapter"), (("org/Small-1B", "b" * 40), "/model/source")):
        with pytest.raises(InputError) as failure:
            require_base(found, *bad)
        assert failure.value.faults[0].where == where
    spec = parse({"/lora": {"r": 4, "alpha": 12}})
    require_fits(found, tiny_dir(), spec)
    other = tmp_path / "other"
    shutil.copytree(tiny_dir(), other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 384}))
    with pytest.raises(InputError, match=r"6 tensors differ, first .*down_proj.*\(4, 256\)\); expected .*\(4, 384\)"):
        require_fits(found, other, spec)


def test_validate_sees_it_before_anything_is_paid_for(first: Path, rows: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", from_first(first, rows) | {"/lora/r": 16}))
    result = tunejob("validate", spec, scratch=tmp_path / "scratch")
    assert result.exit_code == 11
    said = [result.failure[name] for name in ("pointer", "found", "expected")]
    assert said == ["/lora/r", "16", "4, as the adapter"]


def test_a_run_refuses_an_adapter_of_other_layers(rows: Path, tmp_path: Path) -> None:
    """What all-linear means is compared with the layers of the base, before its weights are read."""
    adapter = random_adapter(tiny_dir(), tmp_path / "adapter", target_modules=["q_proj"], lora_alpha=8)
    result = run_tiny(tmp_path, changes(rows) | {"/model/adapter": str(adapter)})
    assert (result.exit_code, result.failure["pointer"], result.failure["stage"]) == (11, "/model/adapter", "data")


def test_a_run_refuses_an_adapter_whose_weights_are_no_numbers(first: Path, rows: Path, tmp_path: Path) -> None:
    """And not only the function that looks: one that trained with it would end with 14, the weights being paid for."""
    adapter = shutil.copytree(first / "adapter", tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = math.nan
    save_file(weights, adapter / "adapter_model.safetensors")
    result = run_tiny(tmp_path, from_first(first, rows) | {"/model/adapter": str(adapter)})
    assert (result.exit_code, result.failure["pointer"], result.failure["stage"]) == (11, "/model/adapter", "data")
    assert "not finite" in result.failure["message"]
