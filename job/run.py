"""The run, on one page; `job/README.md` names its stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from job.context import Run
from job.data.build import Prepared, build_dataset
from job.delivery import (
    manifest_of,
    show_ending,
    show_on_hub,
    store_documents,
    store_statistics,
    tell_failure,
    write_pages,
)
from job.errors import InputError, JobError
from job.errors.facts import failure_facts
from job.export.artefacts import Artefacts
from job.export.delivered import Delivered
from job.export.gguf.stage import Quants, make_quants
from job.export.merge.stage import compare, merge
from job.export.rehearsal import rehearse
from job.host.child import CHILDREN_IMPORT, preload, start_imports
from job.host.device import choose_device, gpu_capability, require_wanted_device
from job.host.log import Log
from job.host.signals import cause, report_where
from job.host.stats import Stats
from job.hub.staging import open_push
from job.ledger.claim import Claim, examine
from job.ledger.compiled import Compiled
from job.ledger.lease import Lease
from job.ledger.leftovers import optional, remove_run_folder
from job.ledger.manifest import Manifest, publish
from job.ledger.receipts import TRAINED, Receipts
from job.ledger.replace import Replacement, plan_replacement
from job.ledger.rights import require_rights
from job.opinions import benchmarks, data_of, require_others
from job.plan.require import require_device, require_disk, with_disk_figures
from job.preview.expected import expected
from job.preview.seen import require_seen
from job.report.samples import write_samples
from job.report.summary import keep_evidence
from job.several import open_model
from job.source import (
    FetchedModel,
    FetchedRows,
    check_config,
    fetch_bases,
    fetch_model_weights,
    fetch_rows,
    go_offline,
)
from job.source.place import pointed
from job.spec import JobSpec
from job.store import Store, open_store
from job.training.environment import prepare_environment
from job.training.machines import leading, say_over, this_machine
from job.training.methods import METHODS
from job.training.start import require_fits
from job.tuning import checkpoint_store, pin, recall, require_gates, require_same_origin, train_and_store

Confirm = Callable[[str], bool]


def run_job(spec: JobSpec, workdir: Path, log: Log, replace: Confirm | None = None) -> Manifest:
    """Runs `spec` from start to published manifest; `workdir` is scratch, ours alone. Raises a `JobError`.

    `replace`: what is at the output may be deleted, if this says yes to the question.
    """
    require_seen(spec, log, replaces=replace is not None)
    ignored, compiled = prepare_environment(workdir), Compiled()
    preload(CHILDREN_IMPORT, gpu_capability())  # stores and the lease have threads
    with leading(this_machine(spec.resources.nodes)):
        return run_here(spec, workdir, log, replace, ignored, compiled)


def run_here(
    spec: JobSpec, workdir: Path, log: Log, replace: Confirm | None, ignored: list[str], compiled: Compiled
) -> Manifest:
    """`run_job` in the environment that it has prepared."""
    store = open_store(spec.output.uri)
    with pointed("/output/uri"):
        planned = plan_replacement(store) if replace else None
        published = None if planned else examine(store, spec)
    if published:
        return finished_before(published, store, log)
    if planned and replace:
        require_consent(planned, store, replace)
    if ignored:
        log("note", text=f"not honoured, the spec decides: {', '.join(ignored)}")
    with Lease(store, log) as lease:
        if not planned and (published := examine(store, spec)):  # by the holder that was waited for
            return finished_before(published, store, log)
        require_rights_of(spec, store, log)
        push = open_push(spec, workdir / "children")
        receipts = Receipts(store, spec.run_id, log, anew=planned is not None)
        claim = Claim(store, spec, lease, receipts, log, planned)
        stats = Stats(spec.run_id, spec.name, workdir, price_per_hour=spec.resources.price_per_hour)
        return with_evidence(Run(spec, store, lease, receipts, claim, push, workdir, log, stats, compiled))


def require_consent(planned: Replacement, store: Store, replace: Confirm) -> None:
    """Raises `InputError` where what would be deleted is to stay."""
    if planned.owners and not replace(planned.question(store.uri)):
        hint = "Answer yes, or choose another output.uri"
        raise InputError("not confirmed: nothing is deleted", where="/output/uri", found=store.uri, hint=hint)


def finished_before(published: Manifest, store: Store, log: Log) -> Manifest:
    remove_run_folder(store, published.run_id, log)  # killed after the publication, a try could not clear it away
    log("done", run_id=published.run_id, output=store.uri, note="already published; nothing was written")
    return published


def require_rights_of(spec: JobSpec, store: Store, log: Log) -> None:
    """What the run may do at its output, and where its checkpoints go if that is elsewhere."""
    require_rights(store, spec.run_id, "/output/uri", log)
    checkpoints, where = checkpoint_store(spec, store)
    if checkpoints is not store:
        require_rights(checkpoints, spec.run_id, where, log)


def with_evidence(run: Run) -> Manifest:
    """The stages; of a failure, what is known of it is stored."""

    def locate(failure: JobError) -> None:
        failure.stage, failure.run_id = run.stats.current, run.spec.run_id

    report_where(locate)
    try:
        manifest = stages(run)
    except BaseException as error:
        failure = run.log.clean(with_disk_figures(cause(error), run.workdir, run.store.uri))
        locate(failure)
        run.stats.failure = failure_facts(failure, failure.stage, run.spec.run_id)
        leave_evidence(run)
        raise failure from error
    show_ending(run, manifest)  # of what is published: a failure here would not be one of the run
    return manifest


def leave_evidence(run: Run) -> None:
    """Stores what is known of the failure, where it damages nothing."""
    with optional(run.log, "the report of the failure is not stored"):
        if run.claim.takes_reports():
            show_failure(run)
            keep_evidence(run.store, run.stats, run.log, [file.key for file in run.receipts.files()])


def show_failure(run: Run) -> None:
    """The page of a run that has failed, and what trackers get of it; what is wrong with these, a full disk for one, is
    not what the run failed of.
    """
    if not run.stats.data:
        return
    try:
        write_pages(run, {})
        tell_failure(run)
    except Exception as error:
        run.log("evidence", note="report.html could not be written or told to trackers", reason=str(error))


def stages(run: Run) -> Manifest:
    """Every stage in order; each artefact is stored as soon as it is whole, the manifest last.

    What an earlier try of this run has stored is not made again: once trained, a rerun starts at the first artefact
    that is missing.
    """
    spec = run.spec
    trained_before = TRAINED in run.receipts
    require_machine(spec, trained_before)
    run.log("start", name=spec.name, run_id=spec.run_id, output=run.store.uri, stored_before=run.receipts.names())
    with run.stage("fetch"):
        require_others(run, trained_before)
        rows = fetch_rows(spec, run.workdir, run.revisions)
        run.log("fetch", files=sum(len(source.files) for source in rows.sources))
    start_imports()
    with run.stage("engine"):  # before anything imports transformers
        model = None if trained_before else open_model(run)
    with nullcontext() if model is None else model:
        with run.stage("data", children=True):
            base, merge_base = fetch_models(run)
            prepared = prepare(run, rows, base)
            tasks = benchmarks(run, base.path, prepared.tokenizer, trained_before)
            artefacts = Artefacts(run, Delivered.of(run, prepared), tasks)
            if trained_before:
                require_same_origin(run, base, prepared)
            rehearse(run, base, merge_base, prepared)
        with run.stage("weights"):
            fetch_weights(artefacts, base, merge_base)
            go_offline()
        if model:
            pin(run, [*rows.sources, *data_of(artefacts.benchmarks)], [base, merge_base])
            train_and_store(run, model, artefacts, base, merge_base, prepared)
        else:
            recall(artefacts)
    say_over()
    require_gates(artefacts)
    if artefacts.outstanding:
        make_exports(artefacts, base, merge_base)
    with run.stage("publish"):
        files = store_documents(run, artefacts, prepared, base, rows.sources)
        show_on_hub(run)
    files.append(store_statistics(run))
    manifest = manifest_of(run, artefacts, prepared, base, rows.sources, files)
    run.lease.require()
    publish(run.store, manifest)
    run.receipts.clear()
    run.compiled.keep(run.stats.device, run.workdir, run.log)
    run.log(
        "published",
        run_id=spec.run_id,
        output=run.store.uri,
        files=len(manifest.files),
        bytes=sum(f.bytes for f in manifest.files),
    )
    return manifest


def make_exports(artefacts: Artefacts, base: FetchedModel, merge_base: FetchedModel) -> None:
    """What is not stored yet."""
    run, device = artefacts.run, choose_device()
    with run.stage("merge", children=True):
        folder = merge(artefacts, base.path, merge_base.path, device)
    with artefacts.storing.to_the_end(), Quants(artefacts, folder, device) as quants:
        with run.stage("compare", children=True):
            compare(artefacts, folder, device).store(artefacts)
            if not quants.any():
                artefacts.storing.note(every=True)
        with run.stage("gguf", children=True):
            make_quants(quants, base.path, merge_base.path)


# ---------------------------------------------------------------------------------------------- stages in detail


def require_machine(spec: JobSpec, trained_before: bool) -> None:
    """As far as the driver tells what a GPU can, before anything is fetched and torch asks it."""
    require_wanted_device()
    if not trained_before:
        require_device(spec, "cuda" if gpu_capability() else "cpu")


def fetch_models(run: Run) -> tuple[FetchedModel, FetchedModel]:
    """As `fetch_bases`. Raises `InputError` as well where an adapter that the spec names does not fit."""
    base, merge_base = fetch_bases(run.spec, run.workdir, check_config, run.revisions)
    for adapter in base.adapters:
        require_fits(adapter, base.path, run.spec)
        run.log("given", **adapter.provenance)
        if adapter.before and run.spec.model.adapter:
            run.stats.evaluation["before"] = asdict(adapter.before)
    if base.adapters:
        key = "combined" if run.spec.model.adapters else "adapter"
        run.stats.effective[key] = ", ".join(adapter.name for adapter in base.adapters)
    return base, merge_base


def prepare(run: Run, rows: FetchedRows, base: FetchedModel) -> Prepared:
    """Rows to token ids; three samples go to the report before anything is paid for."""
    with run.log.bar("data") as bar:
        train, held_out, progress = rows.train, rows.held_out, bar.update_total
        prepared = build_dataset(run.spec, train, held_out, base.path, run.workdir, progress, beside=rows.beside)
    METHODS[run.spec.training.method].look(run.spec, prepared, True)
    run.stats.data = prepared.report.document()
    if run.stats.device:  # not known yet where an earlier try has trained; it has kept its plan
        run.stats.planned = asdict(expected(run.spec, base, prepared, run.stats.device))
    write_samples(prepared, run.report, METHODS[run.spec.training.method].learns_answers)
    run.log("data", **prepared.report.totals())
    for note in prepared.report.notes:
        run.log("note", text=note)
    return prepared


def fetch_weights(artefacts: Artefacts, base: FetchedModel, merge_base: FetchedModel) -> None:
    """The weights that are still needed, what the exports will need beside them, and what was compiled before."""
    needed = [base] if artefacts.needs_trained else []
    if artefacts.needs_base and merge_base not in needed:
        needed.append(merge_base)
    copied_bytes = sum(model.copied_bytes for model in needed)
    require_disk(artefacts.run.workdir, copied_bytes, "the model's weights")
    for model in needed:
        fetch_model_weights(model)
    run = artefacts.run
    run.compiled.fetch(run.stats.device, run.workdir, run.log)
    if artefacts.outstanding and merge_base in needed:
        artefacts.plan(merge_base.path, copied_bytes, choose_device())
