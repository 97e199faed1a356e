"""The publish stage: summary, model card, Modelfiles, statistics, the manifest, and the one commit on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from job.context import Run
from job.data.build import Prepared
from job.export.adapter import files_by_key
from job.export.artefacts import Artefacts
from job.export.delivered import BASE, TRAINED_MODEL
from job.export.kinds import kind_of, variant_of
from job.export.rows import ASKED_PROMPTS
from job.gguf.expected import describe_tokenizer
from job.gguf.types import TYPES
from job.host.planned import pairs
from job.host.screen import width_of
from job.host.stats import package_versions
from job.ledger.evidence import STATS, forget_failure
from job.ledger.manifest import File, Manifest, store_file
from job.ledger.receipts import TRAINED
from job.publish.card.card import write_card
from job.publish.card.facts import CardFacts, Sample
from job.publish.ollama.modelfile import write_modelfiles
from job.report.ending import ending
from job.report.gates import write_gates
from job.report.kept import kept, question, surroundings
from job.report.page.run import PAGE, write_page
from job.report.summary import mask_secrets, write_json, write_summary
from job.source import FetchedModel, FetchedSource
from job.spec.sections import prompt_texts
from job.tracking.follow import Followed, begun

README, SUMMARY = "README.md", "summary.md"


def store_documents(
    run: Run, artefacts: Artefacts, prepared: Prepared, base: FetchedModel, sources: Sequence[FetchedSource]
) -> list[File]:
    """Writes and stores what people read; returns every file of the run but `spec.json` and `stats.json`."""
    facts = artefacts.facts()
    write_summary(run.spec, base.public_id, run.stats, facts, run.receipts[TRAINED].facts["samples"], run.report)
    if facts:
        artefacts.write_report()
    write_pages(run, provenance_of(run, prepared, base, sources))
    tell_trackers(run)
    written = files_by_key(run.report)
    written |= modelfiles(run, prepared, facts)
    written |= card(run, prepared, base, sources, facts)
    mask_secrets(written.values(), run.log)
    files = {file.key: file for file in run.receipts.files()}
    files |= {file.key: file for file in artefacts.store_files(written)}
    forget_failure(run.store, run.log, {*files, STATS})
    return list(files.values())


def write_pages(run: Run, provenance: Mapping[str, Any]) -> None:
    """`report.html`, and the gates for a CI: of what the report holds, and of the statistics so far. `provenance`: as
    in the manifest, where it is known.
    """
    stats = run.stats.document()
    known = kept(run.spec, stats, provenance, partial(report_file, run))
    write_page(known, run.report)
    write_gates(run.spec, stats, known.exports, run.report)


def tell_trackers(run: Run) -> None:
    """Figures of base, tuned model and everything that is delivered, where all of it is, the report, and what the run
    has failed of, if it has.
    """
    whole = {name: known for name, known in run.stats.evaluation.items() if name in (BASE, TRAINED_MODEL)}
    models = run.stats.delivered.get("artefacts", {}) | whole
    figures = {f"{model}/{name}": value for model, known in models.items() for name, value in known.items()}
    files = [path for name in (PAGE, SUMMARY) if (path := run.report / name).exists()]
    mask_secrets(files, run.log)
    failure = run.stats.failure["message"] if run.stats.failure else ""
    Followed(run.spec.tracking, begun(run.spec, run.report), run.log).end(figures, run.store.uri, files, failure)


def tell_failure(run: Run) -> None:
    """Trackers hear of a failure as well, where they have heard of the training. Of one that another try may mend they
    do not: that try goes on with what they have.
    """
    failure, stages = run.stats.failure, {phase.name for phase in run.stats.phases}
    if failure and not failure["retryable"] and ("train" in stages or TRAINED in run.receipts):
        tell_trackers(run)


def report_file(run: Run, key: str) -> bytes | None:
    """What the report has under `key`: made by this try, or stored by an earlier one."""
    path = run.workdir / key
    if path.is_file():
        return path.read_bytes()
    return run.store.read(key) if key in {file.key for file in run.receipts.files()} else None


def modelfiles(run: Run, prepared: Prepared, facts: Sequence[dict[str, Any]]) -> dict[str, Path]:
    """Ollama's Modelfiles beside the GGUFs, by key."""
    made = {variant_of(fact["name"]): fact["files"] for fact in facts if kind_of(fact["name"]).name == "gguf"}
    if not made or not run.spec.export.modelfile:
        return {}
    folder = run.workdir / "modelfiles"
    folder.mkdir()
    names = {TYPES[kind].label: Path(files[0]).name for kind, files in made.items()}
    tokenizer = prepared.tokenizer
    begin = tokenizer.bos_token if describe_tokenizer(tokenizer, []).adds_bos else ""
    stops = [tokenizer.convert_ids_to_tokens(token) for token in prepared.report.stop_token_ids]
    paths = write_modelfiles(folder, names, prepared.probes, begin, stops)
    return {f"gguf/{path.name}": path for path in paths}


def card(
    run: Run, prepared: Prepared, base: FetchedModel, sources: Sequence[FetchedSource], facts: Sequence[dict[str, Any]]
) -> dict[str, Path]:
    """The model card, by key."""
    if not run.spec.export.card:
        return {}
    trained = run.receipts[TRAINED].facts
    samples = [Sample(**sample) for sample in trained["samples"]]
    texts = {trained["reopened"]: trained["answers"]} | {f["name"]: f["answers"] for f in facts if "answers" in f}
    answers = {name: given[:ASKED_PROMPTS] for name, given in texts.items()}
    said = CardFacts(run.spec, base, sources, run.stats.document(), facts, samples, answers, bool(prepared.template))
    return {README: write_card(said, run.workdir / README)}


def show_on_hub(run: Run) -> None:
    """If the spec names a repository: one commit on main with all that was staged and the documents beside it."""
    if run.push:
        staged = [content for name in run.receipts.names() for content in run.receipts[name].facts.get("staged", [])]
        documents = {f"gguf/{path.name}": path for path in (run.workdir / "modelfiles").glob("*")} | {
            README: run.workdir / README
        }
        staged += run.push.stage({key: path for key, path in documents.items() if path.exists()})
        shown = run.push.publish(staged)
        run.log("pushed", commit=shown.commit, url=shown.url, files=shown.files, bytes=shown.bytes)


def show_ending(run: Run, manifest: Manifest) -> None:
    """On a terminal: what came of it. Answers to the spec's prompts, then, where they are here, to held-out rows."""
    if run.log.json_lines:
        return
    asked = zip(prompt_texts(run.spec.evaluation.prompts), run.receipts[TRAINED].facts["samples"], strict=False)
    answers = [sample | {"prompt": prompt} for prompt, sample in asked]
    path = run.report / "answers.json"
    rows = json.loads(path.read_bytes()) if path.exists() else []
    around = surroundings(rows, [answer["prompt"] for answer in answers])
    answers += [row | {"prompt": question(row, around)} for row in rows[len(answers) :]]
    keys, width = [file.key for file in manifest.files], width_of(run.log.stream)
    for line in ending(run.store.uri, keys, run.stats.document(), answers, width):
        run.log.say(line)


def store_statistics(run: Run) -> File:
    """`stats.json`, once every stage has ended; says what the run has cost, and where it was not as planned."""
    document = run.stats.document()
    for pair in pairs(document["planned"]):
        if pair.differs:
            run.log("differs", **asdict(pair))
    if document["cost"]:
        run.log("cost", **document["cost"])
    return store_file(run.store, write_json(run.workdir / STATS, document), STATS)


def manifest_of(
    run: Run,
    artefacts: Artefacts,
    prepared: Prepared,
    base: FetchedModel,
    sources: Sequence[FetchedSource],
    files: list[File],
) -> Manifest:
    """The manifest of this run, which lists `files` and the spec."""
    spec = run.spec
    evaluation = run.stats.evaluation
    results: dict[str, Any] = {name: dict(evaluation[name]) for name in (BASE, TRAINED_MODEL)} | _intervals(evaluation)
    for name, figures in run.stats.delivered["artefacts"].items():
        if name not in results:
            results[name] = dict(figures)
    for fact in artefacts.facts():
        tested = {f"test_{key}": float(v) for key, v in fact["figures"].items() if isinstance(v, int | float)}
        if tested:
            results[fact["name"]] = results.get(fact["name"], {}) | tested
    return Manifest(
        run_id=spec.run_id,
        name=spec.name,
        **provenance_of(run, prepared, base, sources),
        packages=package_versions(),
        results=results,
        files=[*files, run.claim.spec_file()],
    )


def _intervals(evaluation: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Tuned less base, by metric, the rows it is of, and the bounds of these and of both models' figures."""
    found: dict[str, dict[str, float]] = {}
    for metric, about in evaluation.get("differences", {}).items():
        flat = {"difference": about["difference"], "difference_rows": about["rows"]}
        for key, name in ((BASE, BASE), (TRAINED_MODEL, TRAINED_MODEL), ("interval", "difference")):
            for bound, value in zip(("low", "high"), about.get(key, ()), strict=False):
                flat[f"{name}_{bound}"] = value
        for name, value in flat.items():
            found.setdefault(name, {})[metric] = value
    return found


def provenance_of(run: Run, prepared: Prepared, base: FetchedModel, sources: Sequence[FetchedSource]) -> dict[str, Any]:
    """What the run was made of, as the manifest has it."""
    return {
        "base": {"source": run.spec.model.source, "public_id": base.public_id, "revision": base.revision}
        | ({"adapters": [adapter.provenance for adapter in base.adapters]} if base.adapters else {}),
        "data": [
            {"source": s.spec.source, "split": s.spec.split, "revision": s.revision, "sha256": s.sha256}
            for s in sources
        ],
        "chat_template_sha256": prepared.template_sha256,
    }
