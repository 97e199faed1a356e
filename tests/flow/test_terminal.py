"""What a person at a terminal sees of a run, an error and the help, and what a run's result says when asked."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from job.arguments import parser
from job.chat.published import open_published
from job.errors import InputError
from tests.flow.running import Result, document, run_tiny, tiny, tunejob, write_spec
from tests.terminal import Terminal
from tests.tiny import tiny_dir

PROMPTS = ["Turn on the lamp.", "Turn it off.", "Is it on?"]
STAGES = ["fetch", "engine", "data", "weights", "load", "baseline", "train", "adapter", "evaluate", "publish"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Terminal]:
    folder = tmp_path_factory.mktemp("terminal")
    shutil.copytree(tiny_dir(), folder / "base")
    prompts = [PROMPTS[0], *({"prompt": prompt, "reference": "Yes."} for prompt in PROMPTS[1:])]
    changes = {"/model/source": str(folder / "base"), "/evaluation/prompts": prompts, "/training/eval_steps": 2}
    spec = write_spec(folder / "spec.json", tiny(folder / "out", changes))
    terminal = Terminal(["run", spec], folder / "scratch")
    assert terminal.finish() == 0, terminal.shown
    return folder / "out", terminal


def test_each_stage_says_when_it_begins_and_what_it_does(shown: tuple[Path, Terminal]) -> None:
    labels = [found[1] for line in shown[1].lines() if (found := re.match(r" +\d+:\d\d  (\S+) +\S.*", line))]
    assert [label for label in labels if label in STAGES] == STAGES


def test_no_line_is_there_twice_and_none_is_json_or_a_librarys(shown: tuple[Path, Terminal]) -> None:
    quoted = ("  base:", "  tuned:", "  expected:")
    told = shown[1].lines()  # of base and tuned model the same answer may come within a second
    lines = [line for line in told if line.strip() and not line.startswith(quoted) and " → " not in line]
    assert [line for line, count in Counter(lines).items() if count > 1] == []
    assert not [line for line in lines if line.lstrip().startswith("{") or "Loading weights" in line or "it/s" in line]
    assert sum("held-out loss" in line and "step" in line for line in lines) == 2


def test_it_ends_with_figures_answers_places_and_what_to_type(shown: tuple[Path, Terminal]) -> None:
    output, terminal = shown
    lines = terminal.lines()
    figures = document(output / "stats.json")["delivered"]["artefacts"]
    for name, label in (("base", "the base"), ("trained", "tuned, as trained"), ("adapter", "adapter")):
        *_, row = [line for line in lines if line.startswith(f"{label} ")]
        assert f" {figures[name]['held_out_loss']:.4g} " in row
    head, compared = [line for line in lines if "Held-out loss" in line]
    assert "nats a token" in lines[lines.index(head) + 1]
    assert lines[lines.index(compared) - 1].split() == ["Base", "Tuned", "Difference", "Verdict", "Rows"]
    assert "In brackets, bounds that hold in 19 of 20 samples of rows." in lines
    about = document(output / "stats.json")["evaluation"]["differences"]["held_out_loss"]
    low, high = about["interval"]
    said = "no difference" if low <= 0 <= high else "better" if high < 0 else "worse"
    assert re.split(" {2,}", compared)[3:] == [f"{about['difference']:.4g} ({low:.4g} to {high:.4g})", said, "8"]
    answers = document(output / "report" / "answers.json")
    expected = ["nothing: this prompt has no reference", *["Yes.  (tuned is not equal)"] * 2]
    assert [answer["reference"] for answer in answers] == [None, "Yes.", "Yes."]
    for prompt, answer, words in zip(PROMPTS, answers, expected, strict=True):
        at = lines.index(prompt)
        assert lines[at + 3] == f"  expected:  {words}"
        assert lines[at + 1].split() == ["base:", *answer["base"].split()]
        assert lines[at + 2].split() == ["tuned:", *answer["trained"].split()]
    for page in ("README.md", "report/summary.md", "report/report.html"):
        text = (output / page).read_text("utf-8").lower()
        assert ("no reference" in text, text.count("yes.") >= 2) == (True, True), page
    assert f"In {output}:" in lines
    assert [line for line in lines if line.startswith(f"  tunejob chat {output}")]
    assert [line for line in lines if line.startswith(f"  tunejob report {output}")]


def test_a_log_that_is_kept_has_stages_and_steps_for_people(tmp_path: Path) -> None:
    """What `kubectl logs` and `docker logs` show of a run with `--log text`; at its end, what it has cost."""
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", {"/resources/price_per_hour": 3600}))
    done = tunejob("run", spec, "--log", "text", scratch=tmp_path / "scratch", forked=True)
    assert (done.exit_code, done.stderr) == (0, ""), done.stdout
    assert not set(done.stdout) & {"\r", "\x1b", "{"}
    labels = [found[1] for line in done.stdout.split("\n") if (found := re.match(r" +\d+:\d\d  (\S+) +\S", line))]
    assert list(dict.fromkeys(label for label in labels if label in STAGES)) == STAGES
    form = (
        r" +\d+:\d\d  train      step (\d) of 4: loss ([\d.]+), learning rate ([\d.e-]+), "
        r"[\d,]+ tokens/s(, \d+:\d\d left)?$"
    )
    steps = [found.groups() for line in done.stdout.split("\n") if (found := re.match(form, line))]
    rows = [json.loads(line) for line in (tmp_path / "out" / "report" / "losses.jsonl").read_text().splitlines()]
    told = [(str(row["step"]), f"{row['loss']:.4g}", f"{row['learning_rate']:.3g}") for row in (rows[0], rows[-1])]
    assert [step[:3] for step in (steps[0], steps[-1])] == told
    assert [bool(step[3]) for step in (steps[0], steps[-1])] == [True, False], "time left, until nothing is"
    stats = document(tmp_path / "out" / "stats.json")
    assert stats["cost"]["cost"] == pytest.approx(stats["wall_seconds"], abs=0.2)
    assert (
        f"cost       {stats['cost']['cost']:.4g}: {stats['cost']['hours']:.4g} hours at your price of 3600 an hour\n"
        in done.stdout
    )
    assert (
        "hours at the price of 3600 an hour that the spec names."
        in (tmp_path / "out" / "report" / "summary.md").read_text()
    )
    disk = stats["planned"].pop("disk_peak_bytes")
    assert (disk["planned"], disk["actual"]) == (pytest.approx(0, abs=1e9), pytest.approx(0, abs=1e9))
    nothing = {"gpu_peak_bytes": None, "host_peak_bytes": None}
    assert {name: pair["planned"] for name, pair in stats["planned"].items() if name in nothing} == nothing, (
        "no plan is for a CPU"
    )


def test_an_error_is_said_once_with_place_value_and_cure(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", {"/model/precision": "5bit", "/training/lr": 1}))
    terminal = Terminal(["validate", spec], tmp_path / "scratch")
    assert terminal.finish() == 10
    text = "\n".join(terminal.lines())
    assert text.count("/model/precision") == 1
    assert "exit code 10: 2 faults" in text
    assert re.search(r"^    found: +\"5bit\"$", text, re.MULTILINE)
    assert re.search(r"^    to do: +.*/training/learning_rate", text, re.MULTILINE)
    assert '{"' not in text


def test_a_failed_run_keeps_what_libraries_printed(tmp_path: Path) -> None:
    """Out of scratch that goes."""
    gate = {"/evaluation/gates": [{"metric": "held_out_loss", "at_most": 0.001}]}
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", gate))
    terminal = Terminal(["run", spec], tmp_path / "scratch")
    assert terminal.finish() == 14
    (line,) = [line for line in terminal.lines() if "what libraries printed is in" in line]
    kept = Path(line.split()[-1])
    assert kept.parent == tmp_path / "scratch"
    assert "{'loss'" in kept.read_text("utf-8")


def test_a_bare_command_shows_its_help_and_is_not_a_success(tmp_path: Path) -> None:
    bare = tunejob(scratch=tmp_path)
    assert (bare.exit_code, bare.stderr) == (2, "")
    assert "validate" in bare.stdout


def test_every_help_ends_with_two_examples() -> None:
    main = parser()
    (commands,) = [action for action in main._actions if isinstance(action, argparse._SubParsersAction)]
    for name, command in {"": main, **commands.choices}.items():
        text = command.format_help()
        examples = text.partition("\nexamples:\n")[2].splitlines()
        assert len(examples) == 2, name
        assert all(f"tunejob {name}".strip() in line for line in examples), name


# ------------------------------------------------------------------------------------------ asking what was made


def stored_answers(output: Path, who: str) -> list[str]:
    return [row[who] for row in document(output / "report" / "answers.json")]


def test_the_adapter_on_its_base_answers_as_it_was_trained(shown: tuple[Path, Terminal], tmp_path: Path) -> None:
    """And nothing but the answer is on standard output."""
    asked = tunejob("chat", str(shown[0]), "--prompt", PROMPTS[0], scratch=tmp_path, forked=True)
    assert (asked.exit_code, asked.stdout, asked.stderr) == (0, stored_answers(shown[0], "trained")[0] + "\n", "")


def test_each_line_of_a_pipe_gets_a_line(shown: tuple[Path, Terminal], tmp_path: Path) -> None:
    lines = f"{PROMPTS[0]}\n\n{PROMPTS[2]}"
    asked = tunejob("chat", str(shown[0]), "--base", scratch=tmp_path, forked=True, given=lines)
    first, _, third = stored_answers(shown[0], "base")
    assert (asked.exit_code, asked.stdout) == (0, f"{first}\n\n{third}\n"), asked.stderr


def test_a_conversation_remembers_until_a_new_one(shown: tuple[Path, Terminal], tmp_path: Path) -> None:
    """It is held beside the base, which is where it was named."""
    terminal = Terminal(["chat", str(shown[0])], tmp_path)
    for typed in (PROMPTS[0], PROMPTS[1], "/new", PROMPTS[1], ""):
        terminal.wait_for_new("> ")
        terminal.type(f"{typed}\n")
    assert terminal.finish() == 0, terminal.shown
    said = [line for line in terminal.lines() if line and not line.startswith("> ")]
    first, second, _ = stored_answers(shown[0], "trained")
    assert "tiny: the adapter on its base, on cpu." in said[0]
    assert (said[1], said[3]) == (first, second)
    assert said[2] != second, "the first question and its answer come before"


def test_a_base_that_is_gone_is_named_with_what_to_do(shown: tuple[Path, Terminal], tmp_path: Path) -> None:
    base = shown[0].parent / "base"
    moved = base.rename(tmp_path / "moved")
    try:
        refused = tunejob("chat", str(shown[0]), "--prompt", "x", scratch=tmp_path / "s", forked=True)
        elsewhere = ["--base-from", str(moved), "--workdir", str(tmp_path / "kept")]
        asked = tunejob("chat", str(shown[0]), "--prompt", PROMPTS[0], *elsewhere, scratch=tmp_path / "s", forked=True)
    finally:
        moved.rename(base)
    assert refused.exit_code == 11
    assert "--base-from" in refused.stderr
    assert str(base) in refused.stderr
    assert asked.stdout == stored_answers(shown[0], "trained")[0] + "\n", asked.stderr
    assert [path.is_symlink() for path in (tmp_path / "kept").glob("chat-*/model/*.safetensors")] == [True]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [(["--gguf", "q8_0"], 11, "the run has no such GGUF"), (["--gguf", "--base"], 10, "not allowed with argument")],
)
def test_what_cannot_be_asked(
    shown: tuple[Path, Terminal], tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    refused = tunejob("chat", str(shown[0]), "--prompt", "x", *arguments, scratch=tmp_path, forked=True)
    assert refused.exit_code == code
    assert said in refused.stdout + refused.stderr


def last_words(chat: Result) -> dict[str, str]:
    """Of a chat that failed: answers alone are on standard output."""
    found: dict[str, str] = json.loads(chat.stderr.splitlines()[-1])
    return found


@pytest.mark.parametrize("spec", [None, b"{}"])
def test_a_folder_without_a_run_is_refused_with_what_is_there(tmp_path: Path, spec: bytes | None) -> None:
    (folder := tmp_path / "out").mkdir()
    if spec:
        (folder / "other.json").write_bytes(spec)
    refused = tunejob("chat", str(folder), "--prompt", "x", scratch=tmp_path / "s", forked=True)
    assert refused.exit_code == 11
    failure = refused.failure
    assert failure["message"] == "no finished run"
    assert failure["found"] == ("other.json, which no run has stored" if spec else "nothing")


def test_what_a_gate_has_stopped_can_be_asked(tmp_path: Path) -> None:
    """Its adapter is stored. What serves the result has nothing of it."""
    gates = [{"metric": "held_out_loss", "at_most": 0.001}]
    changes = {"/evaluation": {"prompts": PROMPTS, "gates": gates}, "/training/max_steps": 2}
    output = tmp_path / "out"
    stopped = run_tiny(tmp_path, changes)
    assert stopped.exit_code == 14
    asked = tunejob("chat", str(output), "--prompt", PROMPTS[0], scratch=tmp_path / "s", forked=True)
    assert asked.exit_code == 0, asked.stderr
    assert asked.stdout == stored_answers(output, "trained")[0] + "\n"
    assert f"this run has not finished: {stopped.failure['message']}. What it has trained is stored" in asked.stderr
    gguf = tunejob("chat", str(output), "--prompt", "x", "--gguf", scratch=tmp_path / "s", forked=True)
    assert (gguf.exit_code, last_words(gguf)["message"]) == (11, "the run has no such GGUF")
    with pytest.raises(InputError, match=f"no finished run.* a run that failed: {stopped.failure['message']}"):
        open_published(str(output))
    (output / "adapter" / "adapter_model.safetensors").unlink()
    lost = tunejob("chat", str(output), "--prompt", "x", scratch=tmp_path / "s", forked=True)
    assert (lost.exit_code, last_words(lost)["pointer"]) == (14, "adapter/adapter_model.safetensors")
