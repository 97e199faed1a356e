"""tunejob compare: which of several runs is best, what differs, what it took; and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from job.errors import GateError, InputError, JobError, SpecError
from job.evaluation.metrics import METRICS
from job.host.output_file import write_output
from job.report.compare import ABSENT, RunComparison, compare, require_several
from job.report.compare_text import as_json, as_text
from job.report.figures import since
from job.report.markdown import figure
from job.report.page.compare import compare_page
from job.spec.strict import StrictValidator, load_schema
from job.store import DirectoryStore
from tests.browser import DESK, PHONE, browser, found
from tests.flow.running import tunejob
from tests.reports import BASE, TUNED, encoded, files, statistics
from tests.unit.test_report_page import ATTACK, LONGEST, Elements

SPEC: dict[str, Any] = {"name": "lamps", "training": {"learning_rate": 0.001, "epochs": 1.0}, "output": {"uri": "here"}}


def put(
    output: Path, stats: dict[str, Any] | None = None, spec: dict[str, Any] | None = SPEC, published: bool = True
) -> str:
    """An output with what a run leaves there to be compared."""
    store = DirectoryStore(str(output))
    store.write("stats.json", json.dumps(statistics() if stats is None else stats).encode())
    store.write("report/losses.jsonl", encoded("report/losses.jsonl", files()["report/losses.jsonl"]))
    if spec is not None:
        store.write("spec.json", json.dumps(spec).encode())
    if published:
        store.write("manifest.json", b"{}")
    return str(output)


def evaluated(**tuned: float) -> dict[str, Any]:
    return {"base": BASE, "trained": TUNED | tuned}


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """By loss the second is best, by exact match the third; the first has the time of the others twice over."""
    slow = statistics(wall_seconds=7200.0)
    second = statistics(name="second", wall_seconds=3600.0, evaluation=evaluated(held_out_loss=0.4))
    third = statistics(name="third", wall_seconds=3600.0, evaluation=evaluated(exact_match=1.0))
    faster = SPEC | {
        "training": {"learning_rate": 0.002, "epochs": 1.0, "warmup_steps": 5},
        "output": {"uri": "elsewhere"},
    }
    return [put(tmp_path / "a", slow), put(tmp_path / "b", second, faster), put(tmp_path / "c", third)]


def test_a_run_that_went_on_is_beside_the_run_before(tmp_path: Path) -> None:
    """Figures of other held-out rows are called so; those that only one of both has are left out."""
    before = {"run_id": "0123456789abcdef", "figures": {"held_out_loss": 0.5, "bleu": 1.0}, "held_out": {"rows": 7}}
    stats = statistics(evaluation=evaluated(held_out_loss=0.4) | {"before": before})
    found = since(stats)
    assert found is not None
    ((row),) = found.rows
    assert row.name == METRICS["held_out_loss"].title
    assert row.cells == ("0.5", figure(BASE["held_out_loss"]), "0.4", "-0.1")
    assert found.note.endswith("are compared on the same ones.")
    stats["data"]["held_out"] = {"rows": 7}
    same = since(stats)
    assert same is not None
    assert same.note.endswith("the same number of rows and tokens as this run's.")
    runs = compare([put(tmp_path / "a", statistics(run_id="0123456789abcdef")), put(tmp_path / "b", stats)], None, {})
    assert len([note for note in runs.notes if "went on from the adapter of" in note]) == 1
    assert since(statistics()) is None


def labels(comparison: RunComparison) -> list[str]:
    return [run.label for run in comparison.runs]


def test_the_best_is_first_by_the_metric_that_is_asked_for(three: list[str]) -> None:
    by_loss = compare(three, None, {})
    assert (by_loss.by, labels(by_loss)) == ("held_out_loss", ["second", "lamps", "third"])
    assert by_loss.best is by_loss.runs[0]
    by_match = compare(three, "exact_match", {})
    assert labels(by_match)[0] == "third", "more is better"
    assert by_match.metrics == ["exact_match", "held_out_loss", "perplexity"]
    assert as_text(by_match).startswith("third is best by exact match of 3 runs, with 1.\n")
    assert as_text(by_loss).startswith("second is best by held-out loss of 3 runs, with 0.4.\n")


def test_equal_runs_are_called_equal(tmp_path: Path) -> None:
    text = as_text(compare([put(tmp_path / "a"), put(tmp_path / "b")], None, {}))
    assert text.startswith("a and b are equally good by held-out loss, with 0.5.\n"), (
        "one name: the ends of the addresses tell them apart"
    )
    assert "Their specs do not differ." in text


def test_what_differs_is_named_with_each_value(three: list[str]) -> None:
    comparison = compare(three, None, {})
    assert comparison.differences == [
        ("/training/learning_rate", [0.002, 0.001, 0.001]),
        ("/training/warmup_steps", [5, ABSENT, ABSENT]),
    ]
    lines = [line.split() for line in as_text(comparison).splitlines()]
    assert ["/training/learning_rate", "0.002", "0.001", "0.001"] in lines
    assert ["/training/warmup_steps", "5", "nothing", "nothing"] in lines


def test_a_list_of_values_is_one_value(tmp_path: Path) -> None:
    many, none = SPEC | {"export": {"gguf": ["q8_0", "q6_k", "f16", "q4_0", "q4_1"]}}, SPEC | {"export": {"gguf": []}}
    comparison = compare([put(tmp_path / "a", None, many), put(tmp_path / "b", None, none)], None, {})
    assert [pointer for pointer, _ in comparison.differences] == ["/export/gguf"]
    assert '"q8_0", "q6_k", "f16", "q4_0" and 1 more  []' in as_text(comparison)


def test_time_and_money(three: list[str], tmp_path: Path) -> None:
    assert [run.cost for run in compare(three, None, {"": 1.5}).runs] == [1.5, 3.0, 1.5]
    assert [run.cost for run in compare(three, None, {"h200": 4.0}).runs] == [None] * 3
    device = statistics()["device"] | {"kind": "cuda", "total_memory_bytes": 80 * 10**9}
    names = {"NVIDIA A100-SXM4-80GB": 2.0, "NVIDIA L4": 0.5, "NVIDIA H200": 4.0, "NVIDIA L40S": None}
    outputs = [
        put(tmp_path / f"gpu-{n}", statistics(name=f"gpu-{n}", device=device | {"name": name}))
        for n, name in enumerate(names)
    ]
    found = {
        run.stats["device"]["name"]: run.price_per_hour
        for run in compare(outputs, None, {"a100-80": 2.0, "l4": 0.5, "h200": 4.0}).runs
    }
    assert found == names
    rows = [line.split() for line in as_text(compare(three, None, {"": 1.5})).splitlines()]
    assert ["second", "0.4", "1.649", "0.75", "20", "60", "min", "00", "s", "1.00", "GB", "1.50", "published"] in rows


def test_without_a_price_each_run_has_that_of_its_spec(tmp_path: Path) -> None:
    own = statistics(wall_seconds=3600.0, cost={"price_per_hour": 2.0, "hours": 1.0, "cost": 2.0})
    outputs = [put(tmp_path / "a", own), put(tmp_path / "b", statistics(wall_seconds=3600.0, cost=None))]
    assert {Path(run.output).name: run.cost for run in compare(outputs, None, {}).runs} == {"a": 2.0, "b": None}
    assert {run.cost for run in compare(outputs, None, {"": 1.5}).runs} == {1.5}, "--price alone"
    assert {run.cost for run in compare(outputs, None, {"l4": 1.5}).runs} == {None}


def test_json_is_as_its_schema_has_it(three: list[str]) -> None:
    document = json.loads(as_json(compare(three, "exact_match", {"": 1.0})))
    StrictValidator(load_schema("compare")).validate(document)
    assert (document["by"], document["best"]) == ("exact_match", three[2])
    assert document["differences"][1] == {
        "pointer": "/training/warmup_steps",
        "values": [None, None, 5],
        "absent": [True, True, False],
    }
    assert [run["seconds"] for run in document["runs"]] == [3600.0, 7200.0, 3600.0]


def test_what_makes_figures_less_comparable_is_said(tmp_path: Path) -> None:
    failure = {"class": "InputError", "exit_code": 11, "stage": "data", "message": "no rows", "run_id": "", "faults": 1}
    failed = statistics(
        name="failed", status="failed", failure=failure, evaluation={}, delivered={}, training={}, phases=[], device={}
    )
    other = statistics(name="other")
    other["data"] = other["data"] | {"held_out": other["data"]["held_out"] | {"tokens": 999}}
    outputs = [
        put(tmp_path / "f", failed, None, published=False),
        put(tmp_path / "o", other, published=False),
        put(tmp_path / "l"),
    ]
    comparison = compare(outputs, None, {})
    assert labels(comparison)[-1] == "failed"
    assert comparison.notes == [
        "other has no manifest: it was not published",
        "failed has failed: no rows",
        "failed has stored no spec: what differs is not known of it",
        "their held-out rows are not the same: figures of other rows say little beside each other",
        "they ran on other devices: times are of those",
    ]
    assert comparison.differences == [], "a spec that is not there does not differ"
    StrictValidator(load_schema("compare")).validate(json.loads(as_json(comparison)))
    assert "no manifest" in compare_page(comparison)


@pytest.mark.parametrize("kind", ["held_out", "general"])
def test_the_same_rows_in_other_tokens_are_not_called_others(kind: str, tmp_path: Path) -> None:
    def run(name: str, tokens: int, model: str, rows: int = 8) -> str:
        stats = statistics(name=name)
        stats["data"] |= {kind: stats["data"]["held_out"] | {"tokens": tokens, "rows": rows}}
        return put(tmp_path / name, stats, SPEC | {"model": {"source": model}})

    a, b, c, d = run("a", 99, "one"), run("b", 99, "two"), run("c", 77, "two"), run("d", 77, "three")
    words = f"their {kind.replace('held_out', 'held-out')} rows"
    others = [f"{words} are not the same: figures of other rows say little beside each other"]
    assert compare([a, b], None, {}).notes == []
    assert compare([a, d], None, {}).notes == [
        f"{words} have other tokens, by model, template or length: losses a token say little of them"
    ]
    assert compare([b, c], None, {}).notes == compare([a, b, c], None, {}).notes == others
    assert compare([a, run("e", 77, "three", 9)], None, {}).notes == others


def test_figures_of_other_documents_and_judges_are_told_apart(tmp_path: Path) -> None:
    def judged(rows: str, model: str) -> dict[str, Any]:
        data = [{"source": "a", "revision": None, "sha256": rows}]
        task = {"name": "arc_easy", "few_shot": 0, "documents": 4, "of": 4, "versions": {}, "data": data}
        judge = {"model": "judge", "endpoint": "http://host/v1", "answered_by": [model]}
        return {"base": BASE, "trained": TUNED, "benchmarks": {"lm_eval": "1", "tasks": [task]}, "judge": judge}

    whole = statistics()
    one, two, odd = judged("1" * 64, "one"), judged("2" * 64, "two"), {"judge": 3, "benchmarks": []}
    outputs = []
    for at, evaluation in enumerate([one, two, one, odd]):
        outputs.append(put(tmp_path / f"{at}", whole | {"evaluation": evaluation}))
    assert list(compare([outputs[0], outputs[2], outputs[3]], None, {}).notes) == []
    assert list(compare(outputs[:2], None, {}).notes) == [
        "their judges are not the same: figures of others say little beside each other",
        "their documents or examples of arc_easy are not the same: figures of others say little beside each other",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"phases": [{"name": "train"}]},
        {"evaluation": []},
        {"wall_seconds": "long"},
        {"device": None},
        {"wall_seconds": 10**400},
        {"device": {"name": ["x"]}},
        {"data": {"held_out": "<b>"}},
        {"evaluation": {"base": [1]}},
        {"evaluation": {"trained": "x"}},
        {"delivered": {"artefacts": 1}},
    ],
    ids=[
        "another version",
        "phases",
        "evaluation",
        "seconds",
        "device",
        "endless",
        "device's name",
        "rows",
        "base",
        "trained",
        "artefacts",
    ],
)
def test_statistics_of_another_form_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    outputs = [put(tmp_path / "a"), put(tmp_path / "b", statistics() | change)]
    with pytest.raises(GateError) as caught:
        compare(outputs, None, {})
    (fault,) = caught.value.faults
    assert fault.where.endswith("/b/stats.json")
    assert re.fullmatch(rf"{next(iter(change))}(\.\w+)? of another form", fault.found)


@pytest.mark.parametrize("tasks", [7, [7], [{"data": 7}], [{"data": [7]}]])
def test_benchmarks_of_another_form_are_none(tasks: Any, tmp_path: Path) -> None:
    stats = statistics()
    stats["evaluation"] = stats["evaluation"] | {"benchmarks": {"tasks": tasks}}
    found = compare([put(tmp_path / "a"), put(tmp_path / "b", stats)], None, {})
    assert len(found.runs) == 2


def test_what_is_no_output_or_cannot_be_compared_is_refused(three: list[str], tmp_path: Path) -> None:
    def refused(kind: type[JobError], *outputs: str, by: str | None = None) -> str:
        with pytest.raises(kind) as caught:
            compare(outputs, by, {})
        return str(caught.value.faults[0])

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rows.csv").write_text("a,b\n")
    assert "rows.csv, which no run has stored" in refused(InputError, three[0], str(tmp_path / "other"))
    assert "nothing" in refused(InputError, three[0], str(tmp_path / "none"))
    assert "named twice" in refused(SpecError, three[0], three[0] + "/")
    assert "expected held_out_loss, perplexity, exact_match" in refused(SpecError, *three, by="bleu")
    with pytest.raises(SpecError, match="nothing to compare it with"):
        require_several(three[:1])


def test_the_command_prints_and_writes(three: list[str], tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    result = tunejob(
        "compare", *three, "--by", "exact_match", "--html", str(page), "--price", "2", scratch=tmp_path / "s"
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("third is best by exact match of 3 runs, with 1.\n")
    said = Elements(page.read_text("utf-8")).said
    assert "third is best by exact match of 3 runs, with 1." in said
    assert "/training/learning_rate0.0010.0010.002" in said
    assert said.count("Held-out lossnats a token") == 1, "three curves in one chart"
    bad = tunejob("compare", three[0], str(tmp_path / "none"), scratch=tmp_path / "s")
    assert (bad.exit_code, bad.failure["found"]) == (11, "nothing")
    nowhere = tunejob("compare", *three, "--html", str(tmp_path / "none" / "compare.html"), scratch=tmp_path / "s")
    assert (nowhere.exit_code, nowhere.failure["pointer"], nowhere.failure["found"]) == (
        11,
        "--html",
        str(tmp_path / "none"),
    )


def test_a_file_that_cannot_be_written_is_named_by_its_option(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none" / "x", "no such folder"), (tmp_path, "cannot be written: Is a directory")):
        with pytest.raises(InputError, match=words) as caught:
            write_output(str(path), "", "-o")
        assert caught.value.faults[0].where == "-o"


def test_its_page_stays_small(tmp_path: Path) -> None:
    outputs = [put(tmp_path / str(n), statistics(name=f"run-{n}")) for n in range(10)]
    curve = [{"step": n, "loss": 1 / n, **{f"figure {m}": 1.0 * n for m in range(7)}} for n in range(1, 2000)]
    for output in outputs:
        DirectoryStore(output).write("report/losses.jsonl", encoded("report/losses.jsonl", curve))
    page = compare_page(compare(outputs, None, {}))
    assert "48 of 1,999 points are drawn." in page
    assert len(page.encode()) < LONGEST


@pytest.mark.skipif(not found(), reason="no Chromium (make page-tools)")
def test_its_page_is_of_the_same_make(tmp_path: Path) -> None:
    """Hostile names, values and curves are text; no complaint at any width."""
    hostile = statistics() | {"name": ATTACK, "packages": {}, "delivered": {"artefacts": {ATTACK: {"kl": 1.0}}}}
    spec = {"name": "x", ATTACK.replace("\ud800", ""): {"learning_rate": ATTACK.replace("\ud800", "")}}
    outputs = [
        put(tmp_path / "a", hostile, spec),
        *(put(tmp_path / str(n), statistics(name="n" * 200 + str(n))) for n in range(9)),
    ]
    path = tmp_path / "compare.html"
    path.write_text(compare_page(compare(outputs, None, {"": 3.0})), "utf-8")
    page = path.read_text("utf-8")
    assert (page.count("<script"), page.count("<style"), page.count("<img")) == (1, 1, 0)
    with browser() as chromium:
        tab = chromium.page()
        for dark, width in ((False, DESK), (True, PHONE)):
            tab.look(path, width, dark)
            assert tab.complaints == []
            assert tab.say("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
            assert tab.say("document.title") == "10 runs – tunejob"
