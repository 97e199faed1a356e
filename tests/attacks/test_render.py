"""Nothing in a spec becomes part of the file that carries it: every target gives the bytes back, none runs them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.errors import SpecError
from job.render.text import word
from tests.renders import EVERY_TARGET, LAYOUTS, objects, options_of, ran, rendered, spec_inside, step


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", EVERY_TARGET)
def test_the_spec_comes_back_byte_for_byte(target: str, layout: str, tmp_path: Path) -> None:
    raw = LAYOUTS[layout]
    assert spec_inside(target, rendered(raw, target), tmp_path) == raw
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_expression_of_github_but_our_own(layout: str) -> None:
    text = yaml.safe_load(rendered(LAYOUTS[layout], "actions"))
    found = re.findall(r"\$\{\{.*?\}\}", yaml.safe_dump(text, width=1 << 30, allow_unicode=True), re.DOTALL)
    assert {re.sub(r"\s|secrets\.\w+|vars\.\w+", "", expression) for expression in found} == {
        "${{}}",
        "${{github.ref}}",
    }
    runs = [step["run"] for job in text["jobs"].values() for step in job["steps"]]
    assert not [run for run in runs if "${{" in run]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["dstack", "compose"])
def test_no_expression_of_dstack_and_no_variable_of_compose(target: str, layout: str) -> None:
    text = yaml.safe_load(rendered(LAYOUTS[layout], target))
    command = text["commands"][0] if target == "dstack" else text["services"]["tunejob"]["command"][0]
    assert "${{" not in command
    if target == "compose":
        assert not re.search(r"\$(?!\$)", command.replace("$$", ""))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_actions_submits_is_the_job_itself(layout: str, tmp_path: Path) -> None:
    workflow = yaml.safe_load(rendered(LAYOUTS[layout], "actions", name="x"))
    _, seen, given = ran(step(workflow, "Submit the Job"), tmp_path, "kubectl", RUNNER_TEMP="/runner")
    assert seen == ["--kubeconfig", "/runner/kubeconfig", "apply", "-f", "-"]
    assert objects(given.decode()) == objects(rendered(LAYOUTS[layout], "job", name="x"))


@pytest.mark.parametrize(
    "text", ["", "'", "$", "${", "${{", "$${{", "'${{'", "${{${{", "a\n${{\nb", "\\", "\\'", "é${{"]
)
def test_a_word_is_one_word(text: str, tmp_path: Path) -> None:
    for shell in ("bash", "dash"):
        _, seen, _ = ran(f"docker {word(text)} end", tmp_path, shell=shell)
        assert [given.encode("utf-8", "surrogateescape").decode() for given in seen] == [text, "end"]
    assert "${{" not in word(text)


@pytest.mark.parametrize("target", EVERY_TARGET)
def test_no_value_of_this_shell_is_copied(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of variables only: the files are kept and shared."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "HF_TOKEN", "HF_ENDPOINT", "HOME", "USER"):
        monkeypatch.setenv(name, "canary-of-the-environment")
    text = rendered(LAYOUTS["lines"], target)
    assert "canary" not in text
    assert os.getcwd() not in text


@pytest.mark.parametrize(
    "given",
    [
        {"image": "x; touch pwned"}, {"image": "--privileged"},
        {"image": "a b"}, {"image": "a\nb"}, {"image": "${{ x }}"},
        {"image": "a'b"},
        {"name": "a b"}, {"name": "A"}, {"name": "a\n"}, {"name": "-a"}, {"namespace": "a/b"}, 
        {"queue": ""}, {"queue": "x: y"}, {"name": "x" * 64},
        {"pull_secret": "a b"}, {"service_account": "${{ x }}"}, {"annotation": ["a: b=c"]}, {"annotation": ["a=b\nc"]},
        {"annotation": ["a"]},
        {"egress": ["10.0.0.0/8:1; x"]}, {"egress": ["store.internal:9000"]},
        {"source": "https://a/b@c; x"}, {"source": "--upload-pack=x@c"},
        {"source": "https://a/b@-x"}, {"source": "https://u:p@h/b@c"},
    ],
)  # fmt: skip
def test_options_are_names_or_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        options_of("kueue", **given)
