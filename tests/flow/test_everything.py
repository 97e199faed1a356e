"""Every kind of export of one run, measured before it is listed; memory and disk as predicted; forked, the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from job.gguf.types import TYPES
from job.ledger.manifest import verify
from job.store import open_store
from tests.flow.export_memory import STEPS, Taken, require_all_planned, require_planned, taken_by
from tests.flow.running import (
    DEMO,
    Result,
    document,
    planned_and_seen,
    steady,
    tiny,
    tunejob,
    valid_stats,
    watched,
    write_spec,
)
from tests.forking import ROOT
from tests.tiny import wide_dir

pytestmark = pytest.mark.slow
PATH = f"{ROOT / '.cache' / 'llama.cpp'}:{os.environ['PATH']}"
EVERYTHING = {
    "merged": ["16bit", "4bit"], "gguf": ["bf16", "q8_0", "q4_k_m", "iq3_xxs"], "imatrix": True, "imatrix_tokens": 2048,
    "check_tokens": 256, "lora_gguf": "f16",
}  # fmt: skip
FEW = {"sources": [{"source": str(DEMO / "held_out.jsonl"), "format": "messages", "limit": 12}]}  # of general rows
NAMES = {"merged", "merged_4bit", "imatrix", "lora_gguf", "gguf-bf16", "gguf-q8_0", "gguf-q4_k_m", "gguf-iq3_xxs"}


@dataclass(frozen=True)
class Exported:
    folder: Path
    result: Result
    peak_bytes: int

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def artefacts(self) -> dict[str, dict[str, Any]]:
        return {
            artefact["name"]: artefact for artefact in document(self.output / "report" / "exports.json")["artefacts"]
        }


def run(folder: Path, forked: bool) -> Exported:
    """The same run id wherever it runs: its output is `out` in the current directory."""
    changes = {
        "/model/source": str(wide_dir()),
        "/evaluation/exact_match_rows": 2,
        "/evaluation/forgetting": FEW,
        "/export": EVERYTHING,
    }
    spec = write_spec(folder / "spec.json", tiny("out", changes))
    with watched(folder / "work") as peak:
        extra = {"TUNEJOB_WORKDIR": str(folder / "work")}
        result = tunejob("run", spec, scratch=folder / "scratch", extra=extra, cwd=folder, forked=forked)
    return Exported(folder, result, peak[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Started, as a user does it."""
    return run(tmp_path_factory.mktemp("exports"), forked=False)


def test_every_artefact_is_stored_and_listed_with_its_figures(exported: Exported) -> None:
    assert exported.result.exit_code == 0, exported.result.stdout[-2000:] + exported.result.stderr[-3000:]
    artefacts = exported.artefacts()
    assert artefacts.keys() == NAMES
    manifest = verify(open_store(str(exported.output)))
    listed = {file.key: file.bytes for file in manifest.files}
    for name, artefact in artefacts.items():
        assert artefact["bytes"] == sum(listed[key] for key in artefact["files"])
        if name != "imatrix":
            assert manifest.results[name]["test_kl"] == artefact["figures"]["kl"]
            assert manifest.results[name]["kl"] == artefact["delivered"]["kl"]
    assert not [key for key in listed if key.startswith("checkpoints/")]
    assert not (exported.output / "checkpoints").exists() or not list((exported.output / "checkpoints").rglob("*.json"))


def printed_by(run: Exported) -> str:
    """What its libraries have printed."""
    (kept,) = (run.folder / "work").glob("*/vendor.log")
    return kept.read_text("utf-8")


def test_what_libraries_print_is_not_in_the_log(exported: Exported) -> None:
    assert exported.result.stderr == ""
    assert len(exported.result.events) == len(exported.result.stdout.splitlines())
    printed = printed_by(exported)
    assert "{'loss':" in printed
    assert "Loading weights" in printed


def test_the_figures_hold_their_limits_and_tell_types_apart(exported: Exported) -> None:
    found = {name: artefact["figures"] for name, artefact in exported.artefacts().items()}
    assert found["merged"]["max_logit_difference"] <= 0.02 * found["merged"]["largest_logit"]
    assert found["merged"]["kl"] < 1e-4
    assert found["merged_4bit"]["kl"] < 0.1
    kl = {name: found[f"gguf-{name}"]["kl"] for name in ("bf16", "q8_0", "q4_k_m", "iq3_xxs")}
    assert kl["bf16"] < kl["q8_0"] < kl["q4_k_m"] < kl["iq3_xxs"] < TYPES["iq3_xxs"].max_kl
    assert found["lora_gguf"]["kl"] < 1e-3  # the adapter on the base's GGUF is the merge
    assert found["gguf-q4_k_m"]["fallback_tensors"] == 0  # a width that suits k-quants


def test_everything_that_is_delivered_says_what_the_trained_model_says(exported: Exported) -> None:
    found = valid_stats(exported.output / "stats.json")["delivered"]["artefacts"]
    for name in ("adapter", "merged", "lora_gguf", "gguf-bf16", "gguf-q8_0"):
        assert found[name]["held_out_loss"] == pytest.approx(found["trained"]["held_out_loss"], abs=0.05), name
        assert found[name]["kl"] < 0.05, name
    for name, figures in found.items():  # of the general rows; a 3-bit type is coarser than the training was deep
        if name != "base":
            assert figures["general_loss"] == pytest.approx(
                found["trained"]["general_loss"], abs=0.5 if name == "gguf-iq3_xxs" else 0.1
            )
    assert found["base"]["general_loss"] != found["trained"]["general_loss"]
    assert "exact_match" in found["merged"]
    assert "exact_match" not in found["gguf-q8_0"], "answers are dear there; no gate asks for them"


def test_plain_transformers_loads_the_merge_and_ends_as_trained(exported: Exported) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged, adapter = exported.output / "merged", exported.output / "adapter"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    trained = AutoTokenizer.from_pretrained(adapter)
    assert tokenizer.chat_template == trained.chat_template
    assert tokenizer.get_vocab() == trained.get_vocab()
    stops = document(exported.output / "stats.json")["data"]["stop_token_ids"]
    ids = model.generation_config.eos_token_id
    assert (ids if isinstance(ids, list) else [ids]) == stops
    assert str(model.dtype) == "torch.bfloat16"
    assert "quantization_config" in document(exported.output / "merged_4bit" / "config.json")


def test_the_plan_predicted_the_disk(exported: Exported) -> None:
    """Against the files that another process saw. The same for SmolLM2 in test_demo.py."""
    planned, seen = planned_and_seen(exported.output, exported.folder / "work", exported.peak_bytes)
    assert seen == pytest.approx(planned, rel=0.1)


def test_what_people_read_is_there(exported: Exported) -> None:
    card = (exported.output / "README.md").read_text("utf-8")
    for name in ("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "tiny-IQ3_XXS.gguf", "merged"):
        assert name in card
    modelfile = (exported.output / "gguf" / "Modelfile.Q4_K_M").read_text("utf-8")
    assert modelfile.startswith("FROM ./tiny-Q4_K_M.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    summary = (exported.output / "report" / "summary.md").read_text("utf-8")
    assert "gguf-q4_k_m" in summary
    delivered = valid_stats(exported.output / "stats.json")["delivered"]
    assert delivered["artefacts"].keys() == (NAMES - {"imatrix"}) | {"base", "trained", "adapter"}
    assert delivered["merged_onto"]["losses"].keys() == {"trained", "original"}
    stages = [phase["name"] for phase in valid_stats(exported.output / "stats.json")["phases"]]
    assert stages[-4:] == ["merge", "compare", "gguf", "publish"]


def snippets(card: Path) -> dict[str, str]:
    """The Python that the card shows, by the heading that it is under."""
    text = card.read_text("utf-8")
    return dict(re.findall(r"^### ([^\n]+)\n(?:(?!^##).)*?^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("program", ["transformers", "PEFT", "llama-cpp-python"])
def test_what_the_card_shows_runs_as_printed(
    exported: Exported, program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the card, without a network. llama.cpp's own programs, which are not in the lock, come below."""
    monkeypatch.chdir(exported.output)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it asks the network"))
    exec(compile(snippets(exported.output / "README.md")[program], program, "exec"), {})
    assert capsys.readouterr().out.strip()


PROGRAMS = pytest.mark.skipif(
    any(shutil.which(name, path=PATH) is None for name in ("llama-cli", "llama-completion")),
    reason="make llama-programs builds llama.cpp's own programs",
)


def said_by_llama_cpp(output: Path, folder: Path) -> str:
    """What the card's lines for llama.cpp's own programs print, all of them as they are, beside the card."""
    for entry in output.iterdir():
        (folder / entry.name).symlink_to(entry)
    found = re.search(
        r"^### llama\.cpp\n+```sh\n(.*?)^```$", (output / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{PATH}", "HF_HUB_OFFLINE": "1"}
    command = ["sh", "-e", "-c", found[1]]
    asked = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert asked.returncode == 0, asked.stderr[-2000:]
    return asked.stdout


@PROGRAMS
def test_the_lines_for_llama_cpps_own_program_run_as_printed(exported: Exported, tmp_path: Path) -> None:
    """And say what the test of the file had it say: the GGUF, then the adapter on a GGUF of the base that they make."""
    answers = {name: found["answers"][0] for name, found in exported.artefacts().items() if found.get("answers")}
    said = said_by_llama_cpp(exported.output, tmp_path)
    assert re.findall(r"^> Turn on the lamp\.\n(.*)$", said, re.MULTILINE) == [
        answers["gguf-bf16"] or answers["merged"],
        answers["merged"],
    ]


@PROGRAMS
def test_the_lines_for_raw_text_run_as_printed(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"text": f"Lamp {number} is on and lamp {number + 1} is off."}) + "\n" for number in range(32)
        )
    )
    data = {"train": [{"source": str(rows), "format": "text"}], "held_out": False}
    changes = {"/model/source": str(wide_dir()), "/data": data, "/evaluation/prompts": ["Lamp 7 is"]}
    export = {"gguf": ["f16"], "lora_gguf": "f16", "check_tokens": 128}
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", {**changes, "/export": export}))
    done = tunejob("run", spec, scratch=tmp_path / "scratch", forked=True)
    assert done.exit_code == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (beside := tmp_path / "beside").mkdir()
    said = said_by_llama_cpp(tmp_path / "out", beside)
    first, second = re.findall(r"Lamp 7 is.*", said)
    assert first == second != "Lamp 7 is"


@pytest.mark.parametrize("artefact", ["merged", "gguf-q8_0"])
def test_it_answers_as_its_test_had_it(exported: Exported, artefact: str, tmp_path: Path) -> None:
    which = ["--gguf", "q8_0"] if artefact == "gguf-q8_0" else []
    asked = tunejob(
        "chat", str(exported.output), *which, "--prompt", "Turn on the lamp.", scratch=tmp_path, forked=True
    )
    answers = {name: found["answers"][0] for name, found in exported.artefacts().items() if found.get("answers")}
    assert asked.exit_code == 0, asked.stderr
    assert asked.stdout == f"{answers[artefact] or answers['merged']}\n"  # a GGUF is not asked what has no end


def test_the_same_spec_again_writes_nothing(exported: Exported) -> None:
    before = {p: p.stat().st_mtime_ns for p in exported.output.rglob("*") if p.is_file()}
    again = tunejob("run", str(exported.folder / "spec.json"), scratch=exported.folder / "again", cwd=exported.folder)
    assert again.exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in exported.output.rglob("*") if p.is_file()} == before


# ---------------------------------------------------------------------------------------------- memory and forks


@pytest.fixture(scope="module")
def taken(exported: Exported) -> Taken:
    return taken_by(exported.folder)


@pytest.mark.parametrize("step", STEPS)
def test_the_plan_predicted_the_memory(taken: Taken, step: str) -> None:
    require_planned(taken, step)


def test_every_process_was_planned(taken: Taken) -> None:
    require_all_planned(
        taken, 12
    )  # reload, adapter on the original base, merge, 4-bit, comparison, two conversions, four types, LoRA


def said_by(run: Exported) -> Any:
    """What it said, progress aside."""
    return [
        steady(json.loads(json.dumps(event).replace(str(run.folder), ".")))
        for event in run.result.events
        if "done" not in event
    ]


@pytest.mark.long
def test_both_ways_give_the_same(exported: Exported, tmp_path: Path) -> None:
    started, forked = exported, run(tmp_path, forked=True)
    assert started.result.exit_code == forked.result.exit_code == 0, (
        started.result.stdout + forked.result.stdout + forked.result.stderr
    )
    assert not [run for run in (started, forked) if "children are started" in printed_by(run)]
    assert said_by(started) == said_by(forked)
    outputs = [started.output, forked.output]
    listings = [
        sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
        for output in outputs
    ]
    assert listings[0] == listings[1]
    for name in listings[0]:
        ways = [output / name for output in outputs]
        if name in (
            "adapter/adapter_model.safetensors",
            "report/answers.json",
            "report/probe.safetensors",
        ) or name.endswith(".gguf"):
            assert ways[0].read_bytes() == ways[1].read_bytes(), name
    assert steady(document(outputs[0] / "stats.json")) == steady(document(outputs[1] / "stats.json"))
