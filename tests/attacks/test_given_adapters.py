"""Adapters that somebody else has made: odd settings, other numbers than an adapter has, a place that is a run's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from job.errors import InputError, PolicyError, SpecError
from job.render.rendering import local_paths, require_remote
from job.render.shell import variables
from job.source.given_adapter import (
    POINTER,
    FetchedAdapter,
    fetch_adapter,
    look_at_adapter,
    require_numbers,
    require_settings,
    scaled,
)
from job.source.run_before import RunBefore
from job.spec import LoraSpec
from job.store import open_store
from job.training.methods.grpo import whole_steps
from job.training.methods.rewards import first_and_last, own_reward, own_sha256, reward_of
from job.training.start import require_finite, require_narrow
from job.weights.layout import lay_out
from tests.specs import faults_with, parse
from tests.unit.test_manifest import a_spec, finished

SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
FILES = ("adapter_config.json", "adapter_model.safetensors")


def lora(**changes: Any) -> LoraSpec:
    found = parse({f"/lora/{key}": value for key, value in ({"r": 4, "alpha": 8.0} | changes).items()}).lora
    assert found
    return found


def weights(path: Path, dtype: str = "F32", size: int = 4) -> Path:
    lay_out(path, [("a", dtype, (2, 3), 6 * size), ("b", "F32", (1,), 4)], {})
    return path


@pytest.mark.parametrize(("changed", "words"), [
    ({"init_lora_weights": "pissa_niter_16"}, "its start has changed"),
    ({"init_lora_weights": ["olora"]}, "its start has changed"),
    ({"alora_invocation_tokens": [1, 2]}, "a spec cannot name"),
    ({"modules_to_save": [1, "lm_head", None]}, "has this otherwise"),
])  # fmt: skip
def test_settings_that_the_base_or_the_spec_does_not_have(changed: dict[str, Any], words: str) -> None:
    require_settings(SETTINGS | {"init_lora_weights": "Gaussian"}, lora())
    with pytest.raises(InputError, match=words):
        require_settings(SETTINGS | changed, lora())


@pytest.mark.parametrize(("key", "value"), [
    ("r", -1), ("r", 0), ("r", 10**30), ("r", 1.5), ("r", True),
    ("r", None), ("lora_alpha", 10**400), ("lora_alpha", math.inf),
    ("lora_alpha", math.nan), ("lora_alpha", True), ("lora_alpha", "8"),
])  # fmt: skip
def test_ranks_and_scales_that_are_none(key: str, value: Any) -> None:
    assert scaled(lora(), SETTINGS | {"r": 2, "lora_alpha": 5}) == lora(r=2, alpha=5.0)
    with pytest.raises(InputError, match=f"found {key} "):
        scaled(lora(), SETTINGS | {key: value})


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    require_numbers(weights(tmp_path / "good"))
    with pytest.raises(InputError, match="not of floating-point numbers"):
        require_numbers(weights(tmp_path / "integers", "I64", 8))
    with pytest.raises(InputError, match="a is not where its header says"):
        require_numbers(weights(tmp_path / "short", "F32", 2))


def test_weights_that_are_not_finite_and_ranks_beyond_a_layer(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    given = FetchedAdapter("a", POINTER, tmp_path, "a", None, None, "")
    for value in (1.0, math.inf, math.nan):
        save_file({"x.lora_A.weight": torch.full((2, 3), value)}, tmp_path / FILES[1])
        if math.isfinite(value):
            require_finite(given)
            continue
        with pytest.raises(InputError, match=r"found x\.lora_A\.weight"):
            require_finite(given)
    shapes = {"x.lora_A.weight": (64, 16), "x.lora_B.weight": (32, 64)}
    require_narrow(shapes, 16)
    with pytest.raises(InputError, match="at most 16"):
        require_narrow(shapes, 17)


DEEP = b'{"evaluation": ' + b"[" * 100_000


@pytest.mark.parametrize(("statistics", "figures"), [
    ({"trained": {"held_out_loss": 0.5, "<b>": 1.0, "bleu": "x", "perplexity": math.inf, "exact_match": 10**400}},
     {"held_out_loss": 0.5}),
    ({"trained": [1.0]}, None), ({"trained": {"bleu": True}}, None), (DEEP, None), (b"", None),
])  # fmt: skip
def test_figures_of_a_run_before_that_are_none(statistics: Any, figures: Any, tmp_path: Path) -> None:
    """Its adapter is taken; what is no figure is not compared with."""
    stats = statistics if isinstance(statistics, bytes) else json.dumps({"evaluation": statistics, "data": 1}).encode()
    own = {f"adapter/{name}": content for name, content in zip(FILES, contents(tmp_path, 4), strict=True)}
    output = tmp_path / "out"
    manifest = finished(open_store(str(output)), a_spec(), tmp_path, own | {"stats.json": stats})
    found = fetch_adapter(str(output), lora(targets=["q_proj"]), tmp_path / "work")
    assert found.before == (RunBefore(manifest.run_id, figures, None) if figures else None)
    (output / "stats.json").unlink()  # as where adapter and manifest alone were copied
    assert fetch_adapter(str(output), lora(targets=["q_proj"]), tmp_path / "again").before is None


def test_what_lies_beside_a_runs_adapter_is_not_taken_for_it(tmp_path: Path) -> None:
    """The manifest does not list it, and would not be asked."""
    own = {f"adapter/{name}": content for name, content in zip(FILES, contents(tmp_path, 4), strict=True)}
    output = tmp_path / "out"
    manifest = finished(open_store(str(output)), a_spec(), tmp_path, own)
    for name, content in zip(FILES, contents(tmp_path, 8), strict=True):
        (output / name).write_bytes(content)
    found = fetch_adapter(str(output), lora(targets=["q_proj"]), tmp_path / "work")
    assert found.run_id == manifest.run_id
    assert json.loads((found.path / FILES[0]).read_text())["lora_alpha"] == 8
    look_at_adapter(str(output), lora(targets=["q_proj"]))
    (output / "manifest.json").unlink()
    with pytest.raises(InputError, match="has not finished"):
        look_at_adapter(str(output), lora(targets=["q_proj"]))


def contents(folder: Path, rank: int) -> tuple[bytes, bytes]:
    settings = SETTINGS | {"r": rank, "lora_alpha": 2 * rank}
    return json.dumps(settings).encode(), weights(folder / "weights").read_bytes()


# ------------------------------------------------------------------------------------- what a spec alone shows

GRPO: dict[str, Any] = {"/data/train/0/format": "prompt_only", "/model/backend": "peft", "/training/method": "grpo",
                        "/training/grpo/rewards": [{"metric": "contains"}]}  # fmt: skip
TWO: dict[str, Any] = {"/model/adapters": [{"adapter": "a", "weight": 0.5}, {"adapter": "b", "weight": 0}]}


@pytest.mark.parametrize(("changes", "where"), [
    (GRPO, ""), (TWO, ""), (GRPO | {"/resources/nodes": 2}, "/resources/nodes"),
    (GRPO | {"/training/grpo/max_new_tokens": 2048}, "/training/grpo/max_new_tokens"),
    (GRPO | {"/training/grpo/rewards": [{"metric": "contains", "weight": 0}]}, "/training/grpo/rewards"),
    (TWO | {"/model/adapters": [{"adapter": "a", "weight": 0}, {"adapter": "b", "weight": 0}]}, "/model/adapters"),
    (TWO | {"/resources/gpus": 2}, "/resources/gpus"), (TWO | {"/resources/nodes": 2}, "/resources/nodes"),
    ({"/model/adapter": "./small", "/output/uri": "{name}/"}, "/model/adapter"), ({"/model/adapter": "out/old"}, ""),
    ({"/model/source": "s3://b/x/merged", "/output/uri": "s3://b/x"}, "/model/source"),
    ({"/training/micro_batch": 64}, "/training/micro_batch"), (GRPO | {"/lora/bias": "all"}, ""),
    (GRPO | {"/lora/bias": "all", "/training/grpo/beta": 0.1}, "/lora/bias"),
    ({"/data/train/0/format": "kto", "/training/method": "kto", "/lora/bias": "lora_only"}, "/lora/bias"),
])  # fmt: skip
def test_one_fault_that_needs_no_machine(changes: dict[str, Any], where: str) -> None:
    assert [fault.where for fault in faults_with(changes)] == [where][: bool(where)]


# ----------------------------------------------------------------------------------------- rewards of one's own

OWN = "/training/grpo/rewards/0/file"


@pytest.mark.parametrize(("code", "words"), [
    ("raise SystemExit(0)", "cannot be run"), ("x = 1", "no such function"),
    ("def reward(a, b):\n    return 1 / 0", "ZeroDivisionError"),
    ("def reward(a, b):\n    raise SystemExit(0)", "SystemExit"),
    ("def reward(a, b):\n    return 'much'", "ValueError"),
    ("class E(Exception): pass\ndef reward(a, b):\n    raise E", "has failed on an answer"),
    ("def reward(a, b):\n    return float('nan')", "has given no number"),
])  # fmt: skip
def test_a_reward_that_fails_is_an_input_error(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEJOB_REWARD_FILES", "1")
    path = tmp_path / "own.py"
    path.write_text(code)
    with pytest.raises(InputError, match=words) as failure:
        own_reward(str(path), OWN)("an answer", "a reference")
    assert failure.value.faults[0].where == OWN


def test_a_reward_is_what_it_was_at_first_wherever_the_run_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run leaves the directory in which its paths begin before it trains."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def reward(answer, reference):\n    return len(answer)\n")
    with pytest.raises(PolicyError):
        own_reward("own.py", OWN)
    monkeypatch.setenv("TUNEJOB_REWARD_FILES", "1")
    own_reward("own.py", OWN)
    known = own_sha256("own.py")
    Path("own.py").write_text("def reward(answer, reference):\n    return 0\n")
    monkeypatch.chdir("/")
    assert own_reward("own.py", OWN)("four", "") == 4.0
    assert own_sha256("own.py") == known


def test_a_reward_file_is_where_the_run_is() -> None:
    """A container engine mounts it and is given the leave; elsewhere it is the image's, or refused."""
    given = [
        parse(GRPO | {"/training/grpo/rewards": [{"metric": "file", "file": file}], "/output/uri": "s3://b/x",
                      "/data/train/0/source": "hf://datasets/a/b"})
        for file in ("own.py", "/opt/own.py")
    ]  # fmt: skip
    assert [local_paths(spec) for spec in given] == [{OWN: "own.py"}, {OWN: "/opt/own.py"}]
    assert all("TUNEJOB_REWARD_FILES" in variables(spec) for spec in given)
    require_remote(given[1])
    with pytest.raises(SpecError, match="an absolute path of the image"):
        require_remote(given[0])


@pytest.mark.parametrize(("metric", "pattern"), [("regex", "((a|a)*)b"), ("format", "(a|a)*b")])
def test_a_pattern_that_never_ends_is_named_where_it_is(
    metric: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("job.evaluation.metrics.record.ANSWER_SECONDS", 0.05)
    monkeypatch.setattr("job.training.methods.rewards.SECONDS", 0.05)
    asked = parse(GRPO | {"/training/grpo/rewards": [{"metric": metric, "regex": pattern}]}).training.grpo
    assert asked
    of = reward_of(asked.rewards[0], "/training/grpo/rewards/0")
    with pytest.raises(PolicyError) as failure:
        of("a" * 40, "ab")
    assert failure.value.faults[0].where == "/training/grpo/rewards/0/regex"


def test_no_prompt_is_left_out_of_an_epoch() -> None:
    rows = [{"prompt": number} for number in range(5)]
    assert whole_steps(rows, 4) == [*rows, *rows[:3]]
    assert whole_steps(rows[:1], 3) == rows[:1] * 3
    assert whole_steps(rows, 5) == rows


def test_what_a_step_does_not_have_is_not_counted_as_0() -> None:
    """TRL logs None for a reward that counted for no answer of a step."""
    lines = [{"reward": 0.5, "reward_regex": 1.0}, {"reward": 0.25}, {"reward": 0.75, "loss": 3.0}]
    assert first_and_last(lines) == {"reward": [0.5, 0.75], "reward_regex": [1.0, 1.0]}
    assert first_and_last([]) == {}
