"""What a person at a terminal sees of a run, of an error, and of the help."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import pytest

from job.arguments import parser
from tests.flow.running import document, tiny, tunejob, write_spec
from tests.terminal import Terminal

PROMPTS = ["Turn on the lamp.", "Turn it off.", "Is it on?"]
STAGES = ["fetch", "engine", "data", "weights", "load", "baseline", "train", "adapter", "evaluate", "publish"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Terminal]:
    folder = tmp_path_factory.mktemp("terminal")
    spec = write_spec(folder / "spec.json", tiny(folder / "out", {"/evaluation/prompts": PROMPTS, "/training/eval_steps": 2}))
    terminal = Terminal(["run", spec], folder / "scratch")
    assert terminal.finish() == 0, terminal.shown
    return folder / "out", terminal


def test_each_stage_says_when_it_begins_and_what_it_does(shown: tuple[Path, Terminal]) -> None:
    labels = [found[1] for line in shown[1].lines() if (found := re.match(r" +\d+:\d\d  (\S+) +\S.*", line))]
    assert [label for label in labels if label in STAGES] == STAGES


def test_no_line_is_there_twice_and_none_is_json_or_a_librarys(shown: tuple[Path, Terminal]) -> None:
    lines = [line for line in shown[1].lines() if line.strip() and not line.startswith(("  base:", "  tuned:"))]
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
    (head,) = [line for line in lines if "Held-out loss" in line]
    assert "nats a token" in lines[lines.index(head) + 1]
    answers = document(output / "report" / "answers.json")
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        at = lines.index(prompt)
        assert lines[at + 1].split() == ["base:", *answer["base"].split()]
        assert lines[at + 2].split() == ["tuned:", *answer["trained"].split()]
    assert f"In {output}:" in lines
    assert [line for line in lines if line.startswith(f"  tunejob chat {output}")]
    assert [line for line in lines if line.startswith(f"  tunejob report {output}")]


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
