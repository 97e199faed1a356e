"""Benchmarks as they are fetched and built: pinned documents, tasks that are not known, rows that are not a task."""

from __future__ import annotations

import json
import math
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from job.errors import InputError, JobError, PolicyError
from job.evaluation.metrics import metric_of
from job.evaluation.own_tasks import document_of
from job.evaluation.scores import figures
from job.evaluation.task_faults import cut_prompts
from job.evaluation.task_names import task_names
from job.source.benchmarks import fetch_set
from job.spec import TaskSpec
from job.spec.sections import TaskRowsSpec
from job.spec.task_rules import figures_of
from tests.flow.running import tiny, write_spec
from tests.forking import ROOT, environment
from tests.hub_server import Hub, hub_server
from tests.tiny import tiny_dir

PACKAGES = next((ROOT / ".venv-benchmarks").glob("lib/python3*/site-packages"), None)
needs_lm_eval = pytest.mark.skipif(PACKAGES is None, reason="lm-eval is in .venv-benchmarks, which make test makes")
CARD = b"""---
configs:
- config_name: Hard
  data_files: [{split: test, path: hard/test.jsonl}]
- config_name: ARC-Easy
  data_files:
  - {split: test, path: easy/test.jsonl}
  - {split: validation, path: easy/more.jsonl}
  - {split: train, path: easy/more.jsonl}
dataset_info:
- config_name: Hard
  features: [{name: other, dtype: string}]
license: mit
---
# Questions
"""
WHOLE = TaskSpec("arc_easy", None, None, False, None, None, "train", None)


def rows(count: int) -> bytes:
    choices = {"label": ["A", "B"], "text": ["yes", "no"]}
    return b"".join(
        json.dumps({"question": f"{n}?", "choices": choices, "answerKey": "AB"[n % 2]}).encode() + b"\n"
        for n in range(count)
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(PACKAGES)])


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
def test_documents_are_of_one_commit_and_one_subset(hub: Hub, tmp_path: Path) -> None:
    """A rerun reads the commit that the first try read, wherever the branch is; other subsets' files stay away."""
    from job.evaluation.benchmarks import load_benchmarks

    files = {
        "README.md": CARD,
        "easy/test.jsonl": rows(6),
        "easy/more.jsonl": rows(3),
        "hard/test.jsonl": b'{"other": "x"}\n',
    }
    repo = hub.repo("datasets/allenai/ai2_arc")
    first = repo.commit(files)
    (found,) = load_benchmarks([WHOLE], tmp_path / "one", {}, 8)
    facts = found.facts()
    assert (facts["documents"], facts["of"], facts["few_shot"]) == (6, 6, 0)
    assert [figure.name for figure in found.figures] == ["arc_easy:acc", "arc_easy:acc_norm"]
    (source,) = facts["data"]
    assert (source["source"], source["revision"]) == ("hf://datasets/allenai/ai2_arc", first)
    assert not [path for path, *_ in hub.seen if "hard/test.jsonl" in path and "/resolve/" in path]
    repo.commit({**files, "easy/test.jsonl": rows(2)})
    (again,) = load_benchmarks([WHOLE], tmp_path / "two", {"/evaluation/tasks/0/name": first}, 8)
    assert again.facts()["data"] == facts["data"]
    (moved,) = load_benchmarks([WHOLE], tmp_path / "three", {}, 8)
    assert (moved.facts()["documents"], moved.facts()["data"] == facts["data"]) == (2, False)


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize(
    ("own", "row", "words"),
    [
        (
            TaskRowsSpec("case", "answer", None, None),
            {"question": "a", "answer": "b"},
            "there is no column 'case', but question, answer",
        ),
        (TaskRowsSpec("question", "answer", None, None), {"question": " ", "answer": "b"}, "question is not text"),
        (
            TaskRowsSpec("question", "answer", ("x", "y"), None),
            {"question": "a", "answer": "C"},
            "none of the choices and no letter of one",
        ),
        (
            TaskRowsSpec("question", "answer", None, "list"),
            {"question": "a", "answer": "x", "list": ["x"]},
            "not a list of two or more texts",
        ),
    ],
)
def test_rows_that_are_no_task_are_named(own: TaskRowsSpec, row: dict[str, Any], words: str, tmp_path: Path) -> None:
    from job.evaluation.benchmarks import load_benchmarks

    good = {"question": "a", "answer": "x", "case": "a", "list": ["x", "y"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    spec = TaskSpec("own", None, None, False, str(tmp_path / "rows.jsonl"), None, "train", own)
    with pytest.raises(InputError, match="row 2") as caught:
        load_benchmarks([spec], tmp_path / "work", {}, 8)
    assert words in str(caught.value)


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
def test_a_list_of_choices_may_be_json_in_a_cell_and_the_answer_a_letter(tmp_path: Path) -> None:
    from job.evaluation.benchmarks import load_benchmarks

    (tmp_path / "rows.csv").write_text(
        'question,answer,options\nOne?,b,"[""x"", ""y""]"\nTwo?,x,"[""x"", ""y"", ""z""]"\n'
    )
    own = TaskRowsSpec("question", "answer", None, "options")
    (found,) = load_benchmarks(
        [TaskSpec("own", None, None, False, str(tmp_path / "rows.csv"), None, "train", own)], tmp_path / "work", {}, 8
    )
    assert [figure.name for figure in found.figures] == figures_of("own", {"choices_column": "options"})
    (task,) = found.loaded["tasks"].values()
    docs = list(task.eval_docs)
    assert [task.doc_to_choice(doc)[task.doc_to_target(doc)] for doc in docs] == ["y", "x"]


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
def test_examples_are_other_rows_and_answers_may_be_filtered(tmp_path: Path) -> None:
    """gsm8k has examples of its own split and two filters; one file has the documents of all."""
    from job.evaluation.benchmarks import load_benchmarks

    source = tmp_path / "sums.jsonl"
    source.write_text(
        "".join(json.dumps({"question": f"{n} and 2?", "answer": f"It is #### {n + 2}"}) + "\n" for n in range(4))
    )
    spec = TaskSpec("gsm8k", 3, None, False, str(source), None, "train", None)
    (found,) = load_benchmarks([spec], tmp_path / "work", {}, 8)
    assert [figure.name for figure in found.figures] == [
        "gsm8k:exact_match,strict-match",
        "gsm8k:exact_match,flexible-extract",
    ]
    (task,) = found.loaded["tasks"].values()
    task.set_fewshot_seed(seed=1)
    for doc in task.eval_docs:
        prompt = task.fewshot_context(doc, 3)
        assert prompt.count(doc["question"]) == 1, "the question itself is not an example"
        assert prompt.count("####") == 3
    with pytest.raises(InputError, match="there are not so many other documents"):
        load_benchmarks([replace(spec, few_shot=4)], tmp_path / "more", {}, 8)


@needs_lm_eval
@pytest.mark.long
@pytest.mark.usefixtures("lm_eval")
def test_a_group_has_the_figure_that_lm_eval_gives_it(tmp_path: Path) -> None:
    """All of lm-eval's tasks are looked at, which takes seconds; those that its files name are all of them."""
    import torch
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from job.evaluation.benchmarks import load_benchmarks, run_benchmarks

    source = tmp_path / "rows.jsonl"
    rows = [
        {"question": f"Q{n} is?", "subject": "x", "choices": [f"a{n}", "b", "c", "d"], "answer": n % 4}
        for n in range(5)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TaskSpec("mmlu", 0, 2, False, str(source), None, "train", None)
    (found,) = load_benchmarks([spec], tmp_path / "work", {}, 8)
    assert [figure.name for figure in found.figures] == ["mmlu:acc"]
    assert (found.facts()["documents"], len(found.facts()["data"])) == (2 * 57, 1)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.float32),
        AutoTokenizer.from_pretrained(tiny_dir()),
    )
    measured = figures(run_benchmarks([found], model.eval(), tokenizer, 16, lambda done: None))
    theirs = evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=16),
        found.loaded,
        limit=2,
        bootstrap_iters=0,
    )
    assert measured["mmlu:acc"] == pytest.approx(theirs["results"]["mmlu"]["acc,none"], abs=1e-6)
    manager = TaskManager()
    assert set(manager.all_tasks) <= set(task_names())
    assert len(task_names()) < len(manager.all_tasks) + 10
    for name in ("gsm8k", "mmlu_anatomy", "arc_easy"):
        assert manager.task_index[name].yaml_path.parent in task_names()[name]


@needs_lm_eval
def test_a_name_that_is_none_is_told_in_under_a_second_with_near_ones(tmp_path: Path) -> None:
    """By `validate` already, without an import of lm-eval; a group and a tag are names as well."""
    tasks = ["gsm8kk", "mmlu", "ai2_arc", {"name": "own", "source": "rows.jsonl",
                                           "rows": {"question": "q", "answer": "a"}}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text('{"q": "One?", "a": "1"}\n')
    path = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", {"/evaluation": {"prompts": [], "tasks": tasks}}))
    command = [sys.executable, "-X", "importtime", "-m", "job", "validate", str(path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path, {"PYTHONPATH": f"{ROOT}:{PACKAGES}"}),
                          capture_output=True, text=True)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 11, done.stdout
    (failure,) = [json.loads(line) for line in done.stdout.splitlines() if "no such task" in line]
    assert failure["pointer"] == "/evaluation/tasks/0/name"
    assert "Did you mean gsm8k or " in failure["hint"]
    assert not re.search(r"\blm_eval\b", done.stderr)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 2, "0.7 on an idle machine"


def test_a_data_set_that_is_a_script_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "load.py").write_text("raise SystemExit")
    with pytest.raises(PolicyError, match="is a script"):
        fetch_set(str(tmp_path / "set"), None, "/evaluation/tasks/0/source", tmp_path / "work", {})


@pytest.mark.parametrize(
    "head", ["dataset_info: [1]", "dataset_info: x", "configs: [{config_name: a, data_files: test.jsonl}, 3]"]
)
def test_a_card_of_another_form_is_called_that(head: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text(f"---\n{head}\n---\n")
    (tmp_path / "set" / "test.jsonl").write_bytes(rows(1))
    with pytest.raises(InputError, match=r"README\.md has no readable head: (dataset_info|configs)"):
        fetch_set(str(tmp_path / "set"), None, "/evaluation/tasks/0/source", tmp_path / "work", {})


def test_a_folder_of_the_users_own_is_not_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "easy").mkdir(parents=True)
    (folder / "hard").mkdir()
    for name, data in (
        ("README.md", CARD),
        ("easy/test.jsonl", rows(2)),
        ("easy/more.jsonl", rows(1)),
        ("hard/test.jsonl", b"{}\n"),
    ):
        (folder / name).write_bytes(data)
    found = fetch_set(str(folder), "ARC-Easy", "/evaluation/tasks/0/source", tmp_path / "work", {})
    assert (found.subset, found.revision, found.file) == ("ARC-Easy", None, None)
    assert (folder / "README.md").read_bytes() == CARD
    assert b"Hard" not in (tmp_path / "work" / "README.md").read_bytes()
    assert not (tmp_path / "work" / "hard").exists()
    with pytest.raises(InputError, match="there is no such subset"):
        fetch_set(str(folder), "ARC-Eas", "/evaluation/tasks/0/source", tmp_path / "other", {})


@pytest.mark.parametrize(
    ("name", "sums", "figure", "lower"),
    [
        ("a:acc", (3.0, 4.0), 0.75, False),
        ("a:word_perplexity", (-4.0, 2.0), 7.389056, True),
        ("a:bits_per_byte", (-2.772589, 2.0), 2.0, True),
        ("a:likelihood_diff", (12.0, 4.0), 3.0, True),
        ("mutual:r@1", (1.0, 4.0), 0.25, False),
    ],
)
def test_figures_of_tasks(name: str, sums: tuple[float, float], figure: float, lower: bool) -> None:
    metric = metric_of(name)
    assert (metric.figure(sums), metric.lower_is_better) == (pytest.approx(figure, abs=1e-5), lower)
    assert (metric.trained_alone, metric.of_losses, metric.needs_rows) == (True, False, False)
    with pytest.raises(KeyError):
        metric_of("acc")


def test_only_shares_have_limits() -> None:
    """ROUGE of some tasks goes up to 100, and a difference below 0: no gate on these is out of reach."""
    assert (metric_of("a:acc").highest, metric_of("a:acc").title) == (1.0, "a: acc, 0 to 1")
    assert (metric_of("a:rouge1_max").highest, metric_of("a:rouge1_diff").lowest) == (math.inf, -math.inf)
    assert metric_of("a:rouge1_max").title == "a: rouge1 max"


def test_an_answer_that_is_generated_is_one_line() -> None:
    own = TaskRowsSpec("question", "answer", None, None)
    assert document_of(own, {"question": "a ", "answer": " 4\n"}) == {"question": "a ", "answer": "4"}
    with pytest.raises(ValueError, match="has several lines"):
        document_of(own, {"question": "a", "answer": "4\n5"})
    with pytest.raises(ValueError, match="not a list"):
        document_of(replace(own, choices_column="list"), {"question": "a", "answer": "4", "list": "[" * 100_000})


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
def test_prompts_that_lm_eval_cuts_are_known(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from job.evaluation.benchmarks import load_benchmarks, run_benchmarks

    long, short = rows(1).replace(b"0?", b"word " * 2100), rows(2)
    (tmp_path / "rows.jsonl").write_bytes(long + short)
    loaded = load_benchmarks([replace(WHOLE, source=str(tmp_path / "rows.jsonl"), limit=1)], tmp_path / "work", {}, 8)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.float32),
        AutoTokenizer.from_pretrained(tiny_dir()),
    )
    with cut_prompts() as cut:
        run_benchmarks(loaded, model.eval(), tokenizer, 1, lambda done: None)
    assert len(cut) == 2, "both answers of the first"


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
def test_a_model_whose_tied_layers_are_trained_is_measured_as_it_is(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from job.evaluation.benchmarks import load_benchmarks, run_benchmarks

    (tmp_path / "rows.jsonl").write_bytes(rows(9))
    loaded = load_benchmarks([replace(WHOLE, source=str(tmp_path / "rows.jsonl"))], tmp_path / "work", {}, 8)
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir())
    model = AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.float32).eval()
    assert model.config.tie_word_embeddings
    wanted = run_benchmarks(loaded, model, tokenizer, 4, lambda done: None)
    trained = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted = get_peft_model(model, trained).eval()
    assert run_benchmarks(loaded, adapted, tokenizer, 4, lambda done: None) == wanted
    with torch.no_grad():  # no longer what the other is tied to
        adapted.get_output_embeddings().weight.neg_()
    assert run_benchmarks(loaded, adapted, tokenizer, 4, lambda done: None) != wanted
    assert "tie_weights" not in vars(adapted)


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize("few_shot", [0, 2])
def test_what_is_reckoned_is_what_a_model_reads(few_shot: int, tmp_path: Path) -> None:
    """Of as few documents as are looked at, every token: of answers to choose from, of those with the same beginning,
    of one that is generated. Of more, within their spread.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from job.evaluation.benchmarks import load_benchmarks, run_benchmarks
    from job.evaluation.task_work import SAMPLED, TaskRequests, work_of

    (tmp_path / "rows.jsonl").write_bytes(rows(SAMPLED + 3))
    sums = "".join(json.dumps({"question": f"{n} + 1 =", "answer": n + 1}) + "\n" for n in range(4))
    (tmp_path / "sums.jsonl").write_text(sums)
    generated = TaskSpec("sums", few_shot, None, False, str(tmp_path / "sums.jsonl"), None, "train",
                         TaskRowsSpec("question", "answer", None, None), merged=True)  # fmt: skip
    chosen = replace(WHOLE, source=str(tmp_path / "rows.jsonl"), few_shot=few_shot, limit=SAMPLED)
    loaded = load_benchmarks([chosen, generated], tmp_path / "work", {}, 1)
    assert [figure.name for figure in loaded[1].figures] == figures_of("sums", {})
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir())
    work = [work_of(one, index, tokenizer) for index, one in enumerate(loaded)]
    assert [(each.name, each.of_merged, each.fetched_bytes) for each in work] == [
        ("arc_easy", False, 0),
        ("sums", True, 0),
    ]
    model = AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.float32).eval()
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, given: read.append((args[0] if args else given["input_ids"]).numel()), with_kwargs=True
    )
    for each, one in zip(work, loaded, strict=True):
        read.clear()
        run_benchmarks([one], model, tokenizer, 1, lambda done: None)
        asked = each.asked
        assert asked is not None
        assert (asked.readings + asked.answers, asked.read_tokens + asked.prompt_tokens) == (len(read), sum(read))
    assert work[1].asked == TaskRequests(4, answers=4, prompt_tokens=sum(read), new_tokens=4)
    (more,) = load_benchmarks([replace(chosen, limit=None)], tmp_path / "more", {}, 1)
    all_of_them = work_of(more, 0, tokenizer).asked
    assert all_of_them is not None
    assert (all_of_them.documents, all_of_them.readings) == (SAMPLED + 3, 2 * (SAMPLED + 3))


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
def test_answers_as_long_as_the_models_window_are_refused_with_the_documents(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from job.evaluation.benchmarks import load_benchmarks
    from job.evaluation.task_work import require_room

    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "1 + 1 =", "answer": 2}) + "\n")
    own = TaskRowsSpec("question", "answer", None, None)
    spec = replace(WHOLE, name="sums", source=str(tmp_path / "sums.jsonl"), rows=own)
    tokenizer, window = AutoTokenizer.from_pretrained(tiny_dir()), 2048
    require_room(load_benchmarks([spec], tmp_path / "less", {}, window - 1), tiny_dir(), tokenizer)
    with pytest.raises(InputError, match="no room for a question") as caught:
        require_room(load_benchmarks([spec], tmp_path / "more", {}, window), tiny_dir(), tokenizer)
    assert (caught.value.faults[0].where, caught.value.faults[0].found) == ("/evaluation/tasks/0", "sums: 2048 tokens")


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
def test_a_plan_has_their_time_and_what_they_fetch(hub: Hub, tmp_path: Path) -> None:
    """In the stages where a run measures them, of each model; a gate that no figure can meet ends it like a run."""
    from job.preview.text import as_text
    from tests.data_rows import sized_model
    from tests.unit.test_plan import chats, plan

    files = {"README.md": CARD, "easy/test.jsonl": rows(600), "easy/more.jsonl": rows(3), "hard/test.jsonl": b"{}\n"}
    hub.repo("datasets/allenai/ai2_arc").commit(files)
    tasks: dict[str, Any] = {
        "/evaluation": {"prompts": [], "tasks": [{"name": "arc_easy", "merged": True}]},
        "/export": {"merged": ["16bit"]},
    }
    (model := tmp_path / "model").mkdir()
    sized_model(model, 2_000_000_000, {"hidden_size": 2048, "num_hidden_layers": 24})
    found, without = plan(model, chats(20), tasks), plan(model, chats(20), {"/export": {"merged": ["16bit"]}})
    (work,) = found.evaluated.benchmarks
    hub_bytes = len(rows(600)) + len(rows(3))
    assert work.asked is not None
    assert (work.asked.documents, work.asked.readings) == (600, 1200)
    assert hub_bytes <= (work.fetched_bytes or 0) <= hub_bytes + len(CARD)
    for on, plain in zip(found.cards, without.cards, strict=True):
        times, before = ({stage.name: stage.seconds for stage in each.stages} for each in (on, plain))
        asked = times["baseline"]
        assert asked > 1
        assert times["evaluate"] - before["evaluate"] == pytest.approx(asked)
        assert times["merge"] - before["merge"] == pytest.approx(asked)
        assert (on.seconds or 0) - (plain.seconds or 0) == pytest.approx(3 * asked, abs=2.0), (
            "rows take their own time each time"
        )
    said = as_text(found)
    assert "benchmark arc_easy, base, tuned model and merged weights each: 600 documents, 1,200 readings of" in said
    assert re.search(r"^  stage +time +disk +memory +fetched$", said, re.MULTILINE)
    assert re.search(r"^  data .* 58\.0 kB$", said, re.MULTILINE)
    tasks["/evaluation"]["gates"] = [{"metric": "arc_easy:exact_match", "at_least": 0.5}]
    with pytest.raises(InputError, match="no benchmark measures this") as caught:
        plan(model, chats(20), tasks)
    assert caught.value.faults[0].where == "/evaluation/gates/0/metric"


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
def test_a_task_of_two_entries_is_refused(tmp_path: Path) -> None:
    """As of a group and by itself, with other examples: the figures of one would be lost."""
    from job.evaluation.benchmarks import load_benchmarks

    (tmp_path / "rows.jsonl").write_bytes(rows(3))
    spec = replace(WHOLE, source=str(tmp_path / "rows.jsonl"))
    with pytest.raises(InputError, match="this is measured twice") as caught:
        load_benchmarks([spec, replace(spec, few_shot=1)], tmp_path / "work", {}, 8)
    assert (caught.value.faults[0].where, caught.value.faults[0].found) == ("/evaluation/tasks/1", "arc_easy:acc")


@needs_lm_eval
@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize(
    ("name", "row", "kind", "words"),
    [
        ("arc_easy", None, InputError, "do not fit"),
        (
            "humaneval",
            {"prompt": "def f():", "test": "", "entry_point": "f", "task_id": "1"},
            PolicyError,
            "humaneval fetches code_eval",
        ),
        ("ifeval", {"prompt": "a", "key": 1, "instruction_id_list": [], "kwargs": []}, InputError, "this task"),
    ],
)
def test_tasks_that_cannot_be_measured_are_refused_with_the_documents(
    name: str, row: dict[str, Any] | None, kind: type[JobError], words: str, tmp_path: Path
) -> None:
    """Rows of another form, code that a model writes, packages that lm-eval alone does not bring."""
    from job.evaluation.benchmarks import load_benchmarks

    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" if row else "")
    with pytest.raises(kind, match=words) as caught:
        load_benchmarks([replace(WHOLE, name=name, source=str(tmp_path / "rows.jsonl"))], tmp_path / "work", {}, 8)
    assert caught.value.faults[0].where == "/evaluation/tasks/0"
