"""The demo, whole: what `make demo` runs, and everything it leaves."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from job.gguf.header import read_header
from job.ledger.manifest import read_manifest
from job.spec.strict import StrictValidator, load_schema
from job.store import open_store
from tests.flow.running import (
    ROOT,
    Result,
    document,
    listing,
    planned_and_seen,
    reloaded,
    require_planned,
    strict,
    tunejob,
    valid_stats,
    watched,
    write_spec,
)
from tests.smollm2 import model_dir

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Demo:
    folder: Path
    spec: str
    result: Result
    peak_bytes: int

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def read(self, key: str) -> Any:
        return document(self.output / key)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    model_dir()
    folder = tmp_path_factory.mktemp("demo")
    spec = json.loads((ROOT / "schemas" / "examples" / "demo.json").read_bytes()) | {
        "output": {"uri": str(folder / "out")}
    }
    path = write_spec(folder / "spec.json", spec)
    extra = {"TUNEJOB_WORKDIR": str(folder / "work")}
    with watched(folder / "work") as peak:
        result = tunejob("run", path, scratch=folder / "scratch", extra=extra)
    return Demo(folder, path, result, peak[0])


def test_it_succeeds_and_says_so_last(demo: Demo) -> None:
    assert demo.result.exit_code == 0, demo.result.stderr[-3000:]
    assert demo.result.events[-1]["event"] == "published"
    assert demo.result.last_words == ""
    assert len(demo.result.events) == len(demo.result.stdout.splitlines()), "stdout holds JSON lines and nothing else"
    assert demo.result.stderr == "", "what libraries print is in a file of its own"


def test_the_model_learned_the_task(demo: Demo) -> None:
    results = demo.read("manifest.json")["results"]
    assert results["base"]["exact_match"] <= 0.05
    assert results["trained"]["exact_match"] >= 0.8
    assert results["base"]["held_out_loss"] == pytest.approx(3.6620, abs=0.02)
    assert results["trained"]["held_out_loss"] < 0.3


def test_losses_fall(demo: Demo) -> None:
    losses = [json.loads(line)["loss"] for line in (demo.output / "report" / "losses.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(3.7612, rel=0.005)
    assert losses[-1] < 0.3
    assert sum(losses[-3:]) < sum(losses[:3]) / 5


def test_the_answers_are_stored_before_and_after(demo: Demo) -> None:
    answers = demo.read("report/answers.json")
    assert len(answers) == 3 + 12
    tuned = json.loads(answers[0]["trained"])
    assert (tuned["device"], tuned["room"]) == ("lamp", "bathroom")
    assert sum(row["trained"] == row["reference"] for row in answers[3:]) >= 10
    assert not any(row["base"] == row["reference"] for row in answers[3:6])


def test_the_page_says_what_the_statistics_say(demo: Demo) -> None:
    page = (demo.output / "report" / "report.html").read_text("utf-8")
    stats, manifest = demo.read("stats.json"), demo.read("manifest.json")
    base, trained = stats["evaluation"]["base"], stats["evaluation"]["trained"]
    assert f"exact match {base['exact_match']:.4g} → {trained['exact_match']:.4g}." in page
    assert page.count('class="answer"') == 3 + 12
    assert page.count("<mark>{&quot;device&quot;") == 3
    assert all(phase["name"] in page for phase in stats["phases"])
    assert all(source["sha256"] in page for source in manifest["data"])
    assert len(page.encode()) < 200_000


def test_the_manifest_lists_every_file(demo: Demo) -> None:
    StrictValidator(load_schema("manifest")).validate(demo.read("manifest.json"))
    listed = {file.key for file in read_manifest(open_store(str(demo.output))).files}
    assert listed == {key for key, _, _ in listing(demo.output)} - {"manifest.json"}
    report = {key.removeprefix("report/").partition("/")[0] for key in listed if key.startswith("report/")}
    pages = {"report.html", "summary.md", "samples.md", "samples.json", "gates.md", "gates.junit.xml"}
    assert report == {*pages, "answers.json", "losses.jsonl", "tensorboard", "probe.safetensors", "exports.json"}
    adapter = {key.removeprefix("adapter/") for key in listed if key.startswith("adapter/")}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= adapter


def test_the_exports_are_as_good_as_the_adapter(demo: Demo) -> None:
    results = demo.read("manifest.json")["results"]
    assert (
        results["merged"]["test_max_logit_difference"] <= 0.04 * results["merged"]["test_largest_logit"]
    )  # 0.021 where it was measured
    assert results["merged"]["kl"] <= 1e-3  # from the trained model, on learned tokens
    assert results["merged"]["test_kl"] <= 1e-3
    assert results["gguf-q8_0"]["kl"] <= 0.01
    assert results["gguf-q8_0"]["test_kl"] <= 0.01
    assert abs(results["gguf-q8_0"]["test_perplexity_rise"]) <= 0.03  # 0.019 where it was measured
    assert results["gguf-q4_k_m"]["test_kl"] <= 0.2
    assert all(results[name]["exact_match"] >= 0.8 for name in ("adapter", "merged", "gguf-q8_0", "gguf-q4_k_m")), (
        "the gate is theirs, too"
    )
    assert demo.read("stats.json")["delivered"]["merged_onto"]["onto"] == "trained"
    stops = {
        artefact["name"]: artefact["figures"].get("stopped")
        for artefact in demo.read("report/exports.json")["artefacts"]
    }
    assert stops == {"merged": None, "gguf-q8_0": True, "gguf-q4_k_m": True}


def test_types_that_do_not_suit_the_widths_are_replaced_as_llama_cpp_does_it(demo: Demo) -> None:
    figures = {artefact["name"]: artefact["figures"] for artefact in demo.read("report/exports.json")["artefacts"]}
    eight, four = figures["gguf-q8_0"], figures["gguf-q4_k_m"]
    assert eight["fallback_tensors"] == 0
    assert four["fallback_tensors"] == 181  # rows of 576 weights are not a multiple of 256
    header = read_header(demo.output / "gguf" / "demo-Q4_K_M.gguf", "gguf/demo-Q4_K_M.gguf")
    types = Counter(tensor.type for tensor in header.tensors.values())
    assert types == {"F32": 61, "Q4_K": 16, "Q5_0": 166, "Q6_K": 14, "Q8_0": 15}
    assert (demo.output / "gguf" / "demo-Q8_0.gguf").stat().st_size < 145_000_000


def test_the_plan_of_the_spec_is_what_the_run_did(demo: Demo) -> None:
    planned = tunejob("plan", demo.spec, "--json", scratch=demo.folder / "plan", forked=True)
    assert planned.exit_code == 0, planned.stderr
    require_planned(strict(planned.stdout), demo.read("stats.json"))


def test_the_plan_predicted_the_disk(demo: Demo) -> None:
    planned, seen = planned_and_seen(demo.output, demo.folder / "work", demo.peak_bytes)
    assert seen == pytest.approx(planned, rel=0.1)


def test_llama_cpp_answers_as_trained(demo: Demo) -> None:
    """By the chat template and the end token that are in the file."""
    from llama_cpp import Llama

    model = Llama(str(demo.output / "gguf" / "demo-Q8_0.gguf"), n_ctx=256, n_threads=2, verbose=False)
    said = model.create_chat_completion(
        [{"role": "user", "content": "Please bring the bathroom lamp down to 80%."}], max_tokens=64, temperature=0
    )
    choice = said["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"]) == {
        "device": "lamp",
        "room": "bathroom",
        "action": "dim",
        "value": 80,
    }


def test_the_statistics_add_up(demo: Demo) -> None:
    stats = valid_stats(demo.output / "stats.json")
    assert stats["status"] == "succeeded"
    assert (
        abs(sum(phase["wall_seconds"] for phase in stats["phases"]) - stats["wall_seconds"])
        <= 0.01 * stats["wall_seconds"] + 1
    )
    training = document(Path(demo.spec))["training"]
    assert stats["training"]["steps"] == 90 / (training["batch_size"] * training["gradient_accumulation_steps"])
    assert stats["data"]["train"]["rows"] == 90
    assert stats["data"]["held_out"]["rows"] == 12
    assert stats["training"]["tokens"] == stats["data"]["train"]["tokens"]
    assert stats["effective"]["optimizer"] == "adamw_torch_fused"
    rss = {phase["name"]: phase["peak_rss_bytes"] for phase in stats["phases"]}
    assert min(rss.values()) > 20 << 20
    assert 512 << 20 < rss["train"] < 6 << 30


def test_nothing_names_this_machine_and_all_is_readable(demo: Demo) -> None:
    assert demo.read("adapter/adapter_config.json")["base_model_name_or_path"] == "SmolLM2-135M-Instruct"
    for path in sorted(p for p in demo.output.rglob("*") if p.is_file()):
        assert path.stat().st_mode & 0o777 == 0o644, path
        if path.suffix in (".json", ".md", ".jsonl", ".jinja", ".txt") and path.name != "spec.json":
            text = path.read_text("utf-8")
            assert str(demo.folder) not in text, path
            assert str(ROOT) not in text, path
    assert demo.read("spec.json")["output"]["uri"] == str(demo.output), "the one place that says where it went"


def test_strangers_get_the_same_logits(demo: Demo) -> None:
    found = reloaded(model_dir(), demo.output, "4bit", demo.folder / "scratch")
    assert not found["unsloth"]
    assert found["same_choice"]
    assert found["difference"] <= 1e-4, found  # 0.0 where it was measured, of logits up to 49
    assert found["as_it_comes"] <= (0.03 * found["largest"] if found["bf16"] else 1e-4), (
        found
    )  # 0.52 on an AMD EPYC with AVX512-BF16


def test_again_takes_seconds_needs_no_torch_and_writes_nothing(demo: Demo) -> None:
    before = listing(demo.output)
    blocked = demo.folder / "blocked"
    for name in ("torch", "transformers", "datasets", "unsloth"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('not in this test')\n")
    again = tunejob("run", demo.spec, scratch=demo.folder / "again", extra={"PYTHONPATH": f"{blocked}:{ROOT}"})
    assert again.exit_code == 0, again.stderr
    assert again.seconds < 10
    assert [event["event"] for event in again.events] == ["done"]
    assert listing(demo.output) == before


def test_another_spec_is_refused_there(demo: Demo) -> None:
    before = listing(demo.output)
    other = document(Path(demo.spec))
    other["training"]["learning_rate"] = 0.001
    refused = tunejob("run", write_spec(demo.folder / "other.json", other), scratch=demo.folder / "other")
    assert refused.exit_code == 11
    assert refused.failure["pointer"] == "/output/uri"
    assert listing(demo.output) == before


def test_verify_finds_one_flipped_byte(demo: Demo) -> None:
    whole = tunejob("verify", str(demo.output), scratch=demo.folder / "verify")
    assert whole.exit_code == 0
    assert whole.events[-1]["files"] == len(listing(demo.output)) - 1
    copy = demo.folder / "copy"
    shutil.copytree(demo.output, copy)
    weights = copy / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    damaged = tunejob("verify", str(copy), scratch=demo.folder / "verify")
    assert damaged.exit_code == 14
    assert damaged.failure["pointer"] == "adapter/adapter_model.safetensors"
    assert damaged.failure["message"] == "changed"
