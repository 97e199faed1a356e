"""Options that change what is trained or published, each on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from job.errors import GateError
from job.export.reload import compare, open_trained
from tests.flow.running import DEMO, Result, document, reloaded, run_tiny, tunejob, write_spec
from tests.tiny import FEW_TOKENS, tiny_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("options")


def succeeded(result: Result) -> None:
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-3000:]


def test_what_a_spec_must_have_is_enough(folder: Path) -> None:
    """No rows held out, no prompts, no exports: README's first spec, but for place and engine of the model."""
    rows = [{"source": str(DEMO / "train.jsonl"), "format": "messages", "split": "train[:8]"}]
    spec = {
        "version": 1,
        "name": "small",
        "model": {"source": str(tiny_dir()), "backend": "peft"},
        "data": {"train": rows},
        "output": {"uri": "out"},
    }
    place = folder / "small"
    place.mkdir()
    path = write_spec(place / "spec.json", spec)
    succeeded(tunejob("run", path, scratch=place / "scratch", cwd=place))
    assert document(place / "out" / "report" / "answers.json") == []
    assert (place / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_rslora_dora_gaussian_and_whole_modules_in_16bit(folder: Path) -> None:
    lora = {"r": 8, "rslora": True, "dora": True, "init": "gaussian", "modules_to_save": ["embed_tokens", "lm_head"]}
    succeeded(run_tiny(folder / "dora", {"/model/precision": "16bit", "/lora": lora}))
    config = document(folder / "dora" / "out" / "adapter" / "adapter_config.json")
    assert (config["use_rslora"], config["use_dora"], config["init_lora_weights"]) == (True, True, "gaussian")
    assert config["r"] == 8
    assert sorted(config["modules_to_save"]) == ["embed_tokens", "lm_head"]
    assert not list((folder / "dora" / "out" / "report").glob("tensorboard*")), "tracking is []"
    found = reloaded(tiny_dir(), folder / "dora" / "out", "16bit", folder)
    assert found["difference"] <= 1e-4, found
    assert found["same_choice"]


def test_every_weight_is_trained_and_published(folder: Path) -> None:
    result = run_tiny(folder / "full", {"/model/precision": "full", "/training/learning_rate": 0.001})
    succeeded(result)
    assert result.named("reload")[0]["max_logit_difference"] <= 1e-4
    output = folder / "full" / "out"
    assert not (output / "adapter").exists()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (output / "merged").iterdir()
    }
    training = document(output / "stats.json")["training"]
    assert (
        training["trainable_parameters"]
        == FEW_TOKENS * 128 + 2 * (3 * 128 * 256 + 2 * 128 * 128 + 2 * 128 * 64 + 2 * 128) + 128
    )
    found = reloaded(tiny_dir(), output, "full", folder)
    assert found["difference"] <= 1e-4, found
    assert found["same_choice"]
    damage(output / "merged" / "model.safetensors")
    with pytest.raises(GateError, match="the stored weights do not answer as the trained model did"):
        compare(
            open_trained(output / "merged", None, "full", "cpu"), None, "full", output / "report" / "probe.safetensors"
        )


def damage(weights: Path) -> None:
    """The rows of one matrix change places."""
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    save_file(tensors | {name: tensors[name].roll(1, 0).contiguous()}, weights, {"format": "pt"})


def test_the_best_weights_are_published_and_training_stops_early(folder: Path) -> None:
    """Far too high a learning rate: the held-out loss soon rises, and what is published is from before it did."""
    changes = {
        "/training/learning_rate": 0.5,
        "/training/max_steps": 40,
        "/training/lr_scheduler": "constant_with_warmup",
        "/training/warmup_steps": 30,
        "/training/eval_steps": 2,
        "/training/keep": "best",
        "/training/early_stopping": {"patience": 2},
    }
    succeeded(run_tiny(folder / "best", changes))
    stats = document(folder / "best" / "out" / "stats.json")
    training, losses = stats["training"], stats["evaluation"]
    curve = [
        line
        for line in (folder / "best" / "out" / "report" / "losses.jsonl").read_text().splitlines()
        if "held_out_loss" in line
    ]
    assert training["stopped_early"]
    assert training["steps"] < 40
    assert 0 < training["best_step"] < training["steps"]
    assert training["steps"] - training["best_step"] == 2 * 2, "two evaluations without improvement"
    assert len(curve) == training["steps"] // 2
    assert losses["trained"]["held_out_loss"] == pytest.approx(training["best_held_out_loss"], abs=1e-5)
