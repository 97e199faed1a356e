"""What a person reads afterwards: report/, stats.json, and the facts of a failure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from job.data.build import Prepared
from job.errors import JobError
from job.evaluation.assess import Assessment
from job.host.log import Log
from job.host.memory import GIB
from job.host.planned import PlannedFigure, pairs
from job.host.stats import Stats
from job.ledger.evidence import REPORT, STATS, forget_failure
from job.ledger.manifest import store_file
from job.report.figures import differences_table, loss_of_perplexity, measured
from job.report.kept import is_expected
from job.report.markdown import code, figure, table
from job.spec import JobSpec
from job.spec.sections import prompt_texts
from job.store import Store
from job.training.loop import TrainResult

DIGITS = 6
SPLITS = "train", "held_out", "replay", "general"
TEXTS = {".md", ".json", ".jsonl", ".html", ".xml"}


def write_json(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encode(document))
    return path


def _encode(document: Any) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def write_losses(result: TrainResult, folder: Path) -> None:
    """`losses.jsonl`: a line per logged step, held-out losses among them."""
    rows = sorted(result.history + result.held_out_history, key=lambda row: row["step"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_answers(prepared: Prepared, before: Assessment, after: Assessment, folder: Path) -> None:
    """`answers.json`: prompts, references, and what the base and the trained model said, as far as both did."""
    asked = zip(prepared.questions + prepared.exact_match, before.answers + before.row_answers,
                after.answers + after.row_answers, strict=True)  # fmt: skip
    rows = [
        {"prompt": q.text, "reference": q.reference, "base": base, "trained": trained}
        for q, base, trained in asked
        if base is not None and trained is not None
    ]
    write_json(folder / "answers.json", rows)


def write_summary(
    spec: JobSpec, public_id: str, stats: Stats, exports: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, str | None]], folder: Path,
) -> None:  # fmt: skip
    """`summary.md`: the run on one screen; `exports` as in `exports.json`, `samples` as in `answers.json`: no row of
    the data is to be among them.
    """
    lines = [
        f"# {spec.name}",
        "",
        f"Base `{public_id}`, run `{spec.run_id}`, {stats.device.get('name')}, {spec.model.precision}.",
        "",
    ]
    lines += _figures(stats)
    asked = prompt_texts(spec.evaluation.prompts)  # without what the chat template writes around them
    lines += table(("Prompt", "base", "tuned", "expected", "tuned is as expected"), map(_sample_row, asked, samples))
    lines += table(("Training", "value"), [(key, figure(value, DIGITS)) for key, value in stats.training.items()])
    lines += _rows(stats.data)
    lines += table(
        (
            "Test of each export, on every token, against what it is made of",
            "MB",
            "loss (nats a token)",
            "KL (nats a token)",
            "same first choice",
        ),
        [_export_row(fact) for fact in exports],
    )
    lines += table(
        ("Stage", "seconds", "peak GPU reserved GiB", "peak RSS GiB"),
        [
            (p.name, f"{p.wall_seconds:.1f}", _gib(p.peak_gpu_reserved_bytes), _gib(p.peak_rss_bytes))
            for p in stats.phases
        ],
    )
    document = stats.document()
    lines += table(
        ("Planned and taken", "planned", "taken", "more than a fifth apart"),
        [_planned_row(pair) for pair in pairs(document["planned"])],
    )
    if cost := document["cost"]:
        lines.append(
            f"Cost up to here: {cost['cost']:.4g}, which is {cost['hours']:.4g} hours at the price of "
            f"{cost['price_per_hour']:g} an hour that the spec names."
        )
    (folder / "summary.md").write_text("\n".join(lines), "utf-8")


def _figures(stats: Stats) -> list[str]:
    """Base, tuned, and everything that is delivered; which base was merged onto."""
    found = measured(stats.document())
    if found is None:
        return []
    rows = [(row.label, *row.cells) for row in found.rows]
    onto = stats.delivered["merged_onto"]
    merged = [f"Merged onto the {onto['onto']} base.", ""] if onto else []
    return [*table(("Model", *found.heads), rows), found.note, "", *merged, *differences_table(stats.document())]


def _rows(data: Mapping[str, Any]) -> list[str]:
    """Counts of each split side by side: what of the held-out rows is trained on, too, makes their figures doubtful."""
    splits = {name: data[name] for name in SPLITS if data.get(name)}
    keys = dict.fromkeys(key for split in splits.values() for key, value in split.items() if isinstance(value, int))
    rows = [(key, *(figure(split.get(key), DIGITS) for split in splits.values())) for key in keys]
    return table(("Data", *splits), rows)


def _sample_row(prompt: str, sample: Mapping[str, str | None]) -> tuple[str, ...]:
    equal = is_expected(sample["trained"], sample.get("reference"))
    texts = [code(sample.get(name) or "") for name in ("base", "trained", "reference")]
    return code(prompt), *texts, "no reference" if equal is None else "yes" if equal else "no"


def _export_row(fact: Mapping[str, Any]) -> tuple[str, ...]:
    figures = [fact["figures"].get(name) for name in ("perplexity", "kl", "same_top_token")]
    figures[0] = loss_of_perplexity(figures[0])
    return (
        fact["name"],
        f"{fact['bytes'] / 1e6:.1f}",
        *("–" if figure is None else f"{figure:.4g}" for figure in figures),
    )


def _planned_row(pair: PlannedFigure) -> tuple[str, ...]:
    in_bytes = pair.unit == "bytes"
    planned, taken = (f"{n / GIB:.2f} GiB" if in_bytes else f"{n:.1f} s" for n in (pair.planned, pair.actual))
    return pair.what, planned, taken, "yes" if pair.differs else ""


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f}"


def mask_secrets(paths: Iterable[Path], log: Log) -> None:
    """Takes secrets of the environment out of documents before they are stored: rows and answers may quote one."""
    for path in paths:
        if path.suffix in TEXTS and path.is_file():
            text = path.read_text("utf-8")
            if (masked := log.redact(text)) != text:
                path.write_text(masked, "utf-8")


def keep_evidence(store: Store, stats: Stats, log: Log, kept: Collection[str]) -> None:
    """After a failure: stores stats.json, which a full scratch disk does not prevent, and whatever the report holds
    so far, in the place of what an earlier failure has left. `kept`: keys that an artefact needs.

    A store that fails too changes nothing.
    """
    folder = stats.workdir / REPORT
    paths = {f"{REPORT}/{path.relative_to(folder)}": path for path in sorted(folder.rglob("*")) if path.is_file()}
    try:
        forget_failure(store, log, {*kept, *paths, STATS})
        stats.report = [key for key in paths if key not in kept]
        store.write(STATS, log.redact(_encode(stats.document()).decode()).encode())
        mask_secrets(paths.values(), log)
        for key, path in paths.items():
            store_file(store, path, key)
    except JobError as error:
        log("evidence", note="stats.json could not be stored", reason=str(error))
