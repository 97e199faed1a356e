"""Exports by the real command: merged weights, GGUFs, adapter GGUF, Modelfiles and card, measured before listed."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from job.ledger.manifest import read_manifest, verify
from job.store import open_store
from tests.flow.running import (
    LIMIT_SECONDS,
    Result,
    Running,
    document,
    planned_and_seen,
    run_tiny,
    tiny,
    tunejob,
    valid_stats,
    watched,
    write_spec,
)
from tests.forking import environment, run_forked
from tests.servers import Hub, hub_server
from tests.tiny import narrow_dir, tiny_dir, wide_dir

pytestmark = pytest.mark.slow


def changes(export: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Of random weights, whose quantised answers stray far; the tokenizer that is quicker where no GGUF is made."""
    loose = [{"type": name, "kl": 100, "perplexity_rise": 1000} for name in export.get("gguf", ())]
    limits = {"merged_logits": 1, "merged_kl": 1, "gguf": loose}
    model = narrow_dir() if loose else tiny_dir()
    return {"/model/source": str(model), "/export": {"check_tokens": 128, "limits": limits, **export}, **more}


@pytest.mark.long
def test_the_plan_predicted_the_disk_of_another_model(tmp_path: Path) -> None:
    """Narrow, with more embeddings than layers; widths that k-quants do not suit."""
    work = tmp_path / "work"
    export = {
        "merged": ["16bit"],
        "gguf": ["q8_0", "q4_0"],
        "check_tokens": 256,
        "limits": {"merged_logits": 1, "merged_kl": 1},
    }
    with watched(work) as peak:
        result = run_tiny(
            tmp_path, {"/model/source": str(narrow_dir()), "/export": export}, {"TUNEJOB_WORKDIR": str(work)}
        )
    assert result.exit_code in (0, 14), result.stdout[-2000:]  # random weights may not survive q4_0
    planned, seen = planned_and_seen(tmp_path / "out", work, peak[0])
    assert 0.8 * planned <= seen <= 1.1 * planned  # a peak of a moment may fall between two looks


# ------------------------------------------------------------------------------------------ failures and reruns


def test_a_bad_artefact_is_named_and_the_good_ones_stay(tmp_path: Path) -> None:
    """Of two types the first that is made cannot hold its limit."""
    given = changes({"gguf": ["q8_0", "q4_0"]})
    given["/export"]["limits"]["gguf"][0] = {"type": "q8_0", "kl": 1e-12}
    result = run_tiny(tmp_path, given)
    assert result.exit_code == 14
    assert result.failure["class"] == "GateError"
    assert result.failure["pointer"] == "gguf/tiny-Q8_0.gguf"
    assert "1e-12" in result.failure["expected"]
    stored = {path.name for path in (tmp_path / "out" / "gguf").iterdir()}
    assert stored == {"tiny-Q4_0.gguf"}
    report = document(tmp_path / "out" / "report" / "exports.json")
    assert [entry["file"] for entry in report["refused"]] == ["gguf/tiny-Q8_0.gguf"]
    assert {artefact["name"] for artefact in report["artefacts"]} == {"gguf-q4_0"}
    assert list((tmp_path / "out").rglob("done/gguf-q4_0.json")), "its receipt: what a rerun does not make again"
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "manifest.json").exists()


@dataclass(frozen=True)
class Resumed:
    """A run that was killed after its first export and goes to a Hub once it has gone on to its end."""

    folder: Path
    hub: Hub
    trained: bytes  # the adapter before the second try
    again: Result

    @property
    def output(self) -> Path:
        return self.folder / "out"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resumed]:
    folder = tmp_path_factory.mktemp("resumed")
    export = {"merged": ["16bit"], "gguf": ["q8_0"]}
    given = changes(export, **{"/output/hub": {"repository": "org/tuned"}})
    spec = write_spec(folder / "spec.json", tiny(folder / "out", given))
    with hub_server() as hub:
        extra = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token}
        first = Running(("run", spec), folder / "first", extra)
        first.wait_until(lambda run: run.says('"artefact": "merged"'))
        first.kill()
        trained = (folder / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
        again = tunejob("run", spec, scratch=folder / "again", extra=extra)
        yield Resumed(folder, hub, trained, again)


def test_a_killed_run_goes_on_after_the_last_stored_artefact(resumed: Resumed) -> None:
    again, output = resumed.again, resumed.output
    assert again.exit_code == 0, again.stdout[-2000:] + again.stderr[-3000:]
    assert again.named("train") == []
    assert again.named("merge") == []
    assert again.named("start")[0]["stored_before"] == ["merged", "merged_onto", "trained"]
    manifest = verify(open_store(str(output)))
    assert {"base", "trained", "adapter", "merged", "gguf-q8_0"} <= set(manifest.results)
    assert {name for name in manifest.results if name.startswith("gguf")} == {"gguf-q8_0"}
    assert (output / "adapter" / "adapter_model.safetensors").read_bytes() == resumed.trained
    stats = valid_stats(output / "stats.json")
    assert stats["training"]["steps"] == 4  # of the first try


def test_a_stop_during_the_exports_leaves_no_child_and_no_manifest(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", changes({"merged": ["16bit"]})))
    run = Running(("run", spec), tmp_path / "scratch")
    run.wait_until(lambda run: run.says('"event": "merge"'))
    children = psutil.Process(run.pid).children()
    run.signal(signal.SIGTERM)
    result = run.finish()
    assert result.exit_code == 30, result.stdout[-2000:]
    _, there = psutil.wait_procs(children, timeout=10)  # the server of forked ones ends once nobody holds its pipe
    assert not [child for child in there if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_types_are_made_and_tested_while_the_merge_is_stored(tmp_path: Path) -> None:
    """As on a GPU; the disk of this order was planned, and everything is stored and told once."""
    types = ["q8_0", "q5_0", "q4_0"]
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", changes({"merged": ["16bit"], "gguf": types})))
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    scratch.mkdir()
    variables = environment(scratch, {"TUNEJOB_WORKDIR": str(work)})
    with watched(work) as peak:
        code, out, _ = run_forked("tests.flow.early:run", ["run", spec], scratch, variables, LIMIT_SECONDS)
    assert code == 0, out[-2000:]
    stored = [event["artefact"] for line in out.splitlines() if (event := json.loads(line))["event"] == "export"]
    assert sorted(stored) == ["gguf-q4_0", "gguf-q5_0", "gguf-q8_0", "merged"]
    assert {"merged", *(f"gguf-{name}" for name in types)} <= set(verify(open_store(str(tmp_path / "out"))).results)
    planned, seen = planned_and_seen(tmp_path / "out", work, peak[0])
    assert seen <= 1.1 * planned


def test_whole_weights_become_ggufs_too(tmp_path: Path) -> None:
    result = run_tiny(tmp_path, changes({"gguf": ["q8_0"]}, **{"/model/precision": "full"}))
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-3000:]
    results = read_manifest(open_store(str(tmp_path / "out"))).results
    assert results["gguf-q8_0"]["kl"] < 0.05  # 0.018 where it was measured


# ------------------------------------------------------------------------------------------------ refused early


def quantised_base(folder: Path, model: Path) -> Path:
    """`model` as others publish it in 4-bit."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    AutoModelForCausalLM.from_pretrained(model, quantization_config=nf4, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(model / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised_base(tmp_path_factory.mktemp("packed"), tiny_dir())


def test_a_base_that_cannot_be_merged_is_refused_before_training(packed: Path, tmp_path: Path) -> None:
    """Every such base: tests/unit/test_model_config.py."""
    result = run_tiny(tmp_path, {"/model/source": str(packed), "/export": {"gguf": ["q8_0"]}})
    assert result.exit_code == 11
    assert result.failure["pointer"] == "/model/merge_base"
    assert result.named("load") == []


def test_a_quantised_base_is_merged_into_its_16_bit_model(packed: Path, tmp_path: Path) -> None:
    given = {"/model/source": str(packed), "/model/merge_base": str(tiny_dir())}
    result = run_tiny(tmp_path, given | {"/export": {"merged": ["16bit"], "check_tokens": 128}})
    assert result.exit_code == 0, result.stdout[-2000:] + result.stderr[-3000:]
    assert (
        read_manifest(open_store(str(tmp_path / "out"))).results["merged"]["test_kl"] < 0.01
    )  # 0.003, of bf16, where it was measured
    delivered = valid_stats(tmp_path / "out" / "stats.json")["delivered"]
    losses, merged = delivered["merged_onto"]["losses"], delivered["artefacts"]["merged"]["held_out_loss"]
    assert abs(merged - losses["trained"]) < abs(losses["original"] - losses["trained"]) / 10


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused_before_training(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(wide_dir(), model)
    tokenizer = json.loads((model / "tokenizer.json").read_text("utf-8"))
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Whitespace"}, tokenizer["pre_tokenizer"]],
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    started = time.monotonic()
    result = run_tiny(tmp_path, {"/model/source": str(model), "/export": {"gguf": ["q8_0"]}})
    assert result.exit_code == 11, result.stdout[-2000:] + result.stderr[-3000:]
    assert result.named("load") == []
    assert time.monotonic() - started < 120


# ------------------------------------------------------------------------------------------------------- the Hub


def test_everything_goes_to_the_hub_in_one_commit(resumed: Resumed) -> None:
    """Of a run that took two tries: the first had nothing to push."""
    assert resumed.again.exit_code == 0, resumed.again.stdout[-2000:] + resumed.again.stderr[-3000:]
    repo = resumed.hub.repos["org/tuned"]
    assert repo.private
    assert [branch for branch, _ in repo.pushes].count("main") == 1
    assert set(repo.refs) == {"main"}
    pushed, output = repo.files(), resumed.output
    weights = ("adapter/adapter_model.safetensors", "merged/model.safetensors", "gguf/tiny-Q8_0.gguf")
    documents = ("README.md", "gguf/Modelfile", "adapter/chat_template.jinja", "merged/tokenizer.json")
    for key in (*weights, *documents):
        assert bytes(pushed[key]) == (output / key).read_bytes(), key
    assert not [key for key in pushed if key.startswith("report/")]  # reports quote the data
    for path in [p for p in resumed.folder.rglob("*") if p.is_file() and not p.is_relative_to(output / "merged")]:
        assert resumed.hub.token.encode() not in path.read_bytes(), path


def test_a_token_that_cannot_write_is_refused_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    """Every such token: tests/unit/test_hub_push.py."""
    given = changes({}, **{"/output/hub": {"repository": "org/tuned"}})
    result = run_tiny(tmp_path, given, {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_" + "read" * 8})
    assert result.exit_code == 11, result.stdout[-2000:]
    assert result.failure["pointer"] == "/output/hub/repository"
    assert result.failure["stage"] == "fetch"
    assert result.named("fetch") == []
