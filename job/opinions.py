"""Base and tuned model beside each other: what a judge says of their answers, and how sure their differences are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from job.context import Run
from job.evaluation.assess import Assessment, Found
from job.evaluation.benchmarks import Benchmark, left_out, load_benchmarks, require_measured, version
from job.evaluation.judge import AnswerPair, KeptRulings, judge, require_judge
from job.evaluation.metrics.judge import EVEN, JUDGE_WIN_RATE
from job.evaluation.scores import Wanted, differences, figures, paired
from job.evaluation.task_work import require_room
from job.export.artefacts import Artefacts
from job.export.delivered import BASE, TRAINED_MODEL, Losses
from job.export.rows import ASKED_ROWS
from job.report.judged import verdicts
from job.source import FetchedSource
from job.source.benchmarks import FetchedSet
from job.store.base import is_there

BENCHMARKS = "benchmarks"
JUDGE, JUDGED = "judge", "report/judge.jsonl"
EVENTS = {BASE: "baseline", TRAINED_MODEL: "evaluate"}  # those that say what the models know
Measured = tuple[Assessment, Losses]


def require_others(run: Run, trained_before: bool) -> None:
    """Whether those let us in who are needed once money is spent."""
    if run.push:
        run.push.require_access()
    if run.spec.evaluation.judge and not trained_before:
        require_judge(run.spec.evaluation.judge)


def benchmarks(run: Run, base: Path, tokenizer: Any, trained_before: bool) -> list[Benchmark]:
    """Those of the spec with their documents, while there is a network; after the engine, which has to be imported
    before what some of them import. None where nothing is left to be measured by them.

    Raises as `load_benchmarks`, `require_measured` and `require_room` do.
    """
    evaluation = run.spec.evaluation
    of_merged = any(task.merged for task in evaluation.tasks or ()) and "merged" not in run.receipts
    if not evaluation.tasks or (trained_before and not of_merged):
        return []
    found = load_benchmarks(evaluation.tasks, run.workdir / "benchmarks", run.revisions, evaluation.max_new_tokens)
    require_measured(found, evaluation.gates)
    require_room(found, base, tokenizer)
    for text in left_out(found):
        run.log("note", text=text)
    return found


def data_of(loaded: Sequence[Benchmark]) -> list[FetchedSet | FetchedSource]:
    return [source for benchmark in loaded for source in benchmark.sources]


def note_benchmarks(artefacts: Artefacts, found: Found) -> None:
    """What the benchmarks' documents add, to the log and the statistics."""
    run, loaded = artefacts.run, artefacts.benchmarks
    if not loaded:
        return
    if found.cut:
        why = "as they are longer than the model takes"
        run.log("note", text=f"lm-eval has cut {found.cut} of its requests at their beginning, {why}")
    run.log("note", text=", ".join(f"{name} {value:.4g}" for name, value in figures(found.tasks).items()))
    run.stats.evaluation[BENCHMARKS] = {
        "lm_eval": version(), "tasks": [benchmark.facts() for benchmark in loaded],
    }  # fmt: skip


def ask_judge(artefacts: Artefacts, before: Measured, after: Measured) -> tuple[Measured, Measured]:
    """Base and tuned model with what the judge's verdicts add to their rows, where the spec names one.

    Raises `InputError` and `TransientError` where it does not answer; what it has answered is stored by then.
    """
    run, spec = artefacts.run, artefacts.run.spec
    if spec.evaluation.judge is None:
        return before, after
    pairs = _pairs(artefacts, before[0], after[0])
    # By a receipt or not: what an earlier try was answered and does not fit is not asked for
    earlier = run.store.read(JUDGED) if is_there(run.store, JUDGED) else b""
    memory = KeptRulings(
        run.workdir / JUDGED, earlier, run.log.redact, lambda path: artefacts.store_files({JUDGED: path})
    )
    with run.log.live("judges answers") as bar:
        counts, facts = judge(spec.evaluation.judge, pairs, spec.training.seed, memory, bar.update_total)
    run.stats.evaluation[JUDGE] = facts
    run.log(
        "judge",
        endpoint=facts["endpoint"],
        judge_model=facts["model"],
        pairs=facts["pairs"],
        better=facts["better"],
        worse=facts["worse"],
        swayed=facts["swayed"],
        agreement=facts["agreement"],
        requests=facts["requests"],
        judge_tokens=facts["tokens"],
    )
    run.log("note", text=verdicts(facts))
    even = [None if each is None else (EVEN, 1.0) for each in counts]
    both = ((before, even), (after, counts))
    first, second = (
        (replace(found, rows={**found.rows, JUDGE_WIN_RATE.name: rows}), loss) for (found, loss), rows in both
    )
    return first, second


def _pairs(artefacts: Artefacts, before: Assessment, after: Assessment) -> list[AnswerPair]:
    """Of prompts, and of held-out questions where they were answered, those that both models have answered."""
    prepared, wanted = artefacts.delivered.prepared, Wanted.of(artefacts.run.spec.evaluation)
    asked = list(zip(prepared.questions, before.answers, after.answers, strict=True))
    rows = zip(prepared.exact_match, before.row_answers, after.row_answers, strict=True) if wanted.answers else ()
    return [
        AnswerPair(question.text, question.reference, base, tuned)
        for question, base, tuned in chain(asked, rows)
        if base is not None and tuned is not None
    ]


def compare_both(artefacts: Artefacts, before: Measured, after: Measured) -> None:
    """To the statistics, base and tuned on the rows that both have answered, and how sure their differences are."""
    run, delivered = artefacts.run, artefacts.delivered
    rows = paired(before[0].rows, after[0].rows)
    late = {*before[0].unanswered, *after[0].unanswered}
    run.stats.delivered["rows"]["unanswered"] = sorted(number for number in late if number < ASKED_ROWS)
    for name, counts, (found, loss) in zip((BASE, TRAINED_MODEL), rows, (before, after), strict=True):
        run.stats.evaluation[name] = figures(counts)
        delivered.note(name, delivered.beside(replace(found, rows=counts), loss))
    run.stats.evaluation["differences"] = differences(rows[0], rows[1], run.spec.training.seed)
    tell_listeners(run)


def tell_listeners(run: Run) -> None:
    """Who watches the run hears of every figure of both models; the log's own events had those that were known then."""
    for name, event in EVENTS.items():
        run.log.heard(event, run.stats.evaluation.get(name) or {})
