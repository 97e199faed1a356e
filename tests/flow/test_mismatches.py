"""Models whose parts do not belong together are refused instead of trained; scratch and output stay apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.flow.running import Result, listing, run_tiny, tiny, tunejob, write_spec
from tests.tiny import tiny_dir


def broken_model(folder: Path, **config: object) -> Path:
    model = folder / "model"
    shutil.copytree(tiny_dir(), model)
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return model


def refused(result: Result, exit_code: int, pointer: str) -> None:
    assert result.exit_code == exit_code, result.stdout[-2000:] + result.stderr[-2000:]
    assert json.loads(result.last_words)["pointer"] == pointer


@pytest.mark.parametrize(
    "config",
    [{"num_hidden_layers": 4}, {"model_type": "bert", "architectures": ["BertLMHeadModel"]}],
    ids=["layers", "architecture"],
)
def test_weights_that_are_missing_are_not_made_up(config: dict[str, object], tmp_path: Path) -> None:
    model = broken_model(tmp_path, **config)
    refused(run_tiny(tmp_path, {"/model/source": str(model)}), 11, "/model/source")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_token_beyond_the_embedding(tmp_path: Path) -> None:
    model = broken_model(tmp_path)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|new|>"}))
    refused(run_tiny(tmp_path, {"/model/source": str(model)}), 11, "/model/source")


@pytest.mark.parametrize("output", ["runs", "runs/inside", "."])
def test_scratch_never_empties_an_output(output: str, tmp_path: Path) -> None:
    """Scratch is runs/<run id>; an output above it is as wrong as one below."""
    spec = tiny(tmp_path / "data" / output)
    (tmp_path / "data" / "runs" / "inside").mkdir(parents=True)
    (tmp_path / "data" / "runs" / "inside" / "precious").write_text("x")
    before = listing(tmp_path / "data")
    workdir = ("--workdir", str(tmp_path / "data" / "runs"))
    result = tunejob("run", write_spec(tmp_path / "spec.json", spec), *workdir, scratch=tmp_path / "scratch")
    refused(result, 11, "/output/uri")
    assert (tmp_path / "data" / "runs" / "inside" / "precious").read_text() == "x"
    if output != "runs/inside":
        assert listing(tmp_path / "data") == before


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    assert run_tiny(tmp_path).exit_code == 11
