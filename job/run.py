"""The run, on one page: fetch → engine → data → weights → load → baseline → train → adapter → evaluate → publish."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job import capacity, evaluate, export, report
from job.backend import Backend, effective_optimizer, open_backend, prepare_environment
from job.data.build import Prepared, build_dataset, write_samples
from job.errors import classify
from job.failure import failure_facts
from job.log import Log
from job.manifest import File, Manifest, artefact, claim, publish, stored_file
from job.source import FetchedModel, FetchedSource, fetch_data, fetch_model_config, fetch_model_weights, go_offline
from job.spec import JobSpec
from job.stats import Stats, describe_device, gpu_reserved_bytes, package_versions, training_memory
from job.store import Store, open_store
from job.train import TrainResult, train

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Run:
    """What every stage needs: what was asked, where results go, where scratch lies, whom to tell."""

    spec: JobSpec
    store: Store
    workdir: Path
    log: Log
    stats: Stats

    @property
    def report(self) -> Path:
        return self.workdir / "report"


def run_job(spec: JobSpec, workdir: Path, log: Log) -> Manifest:
    """Runs `spec` from start to published manifest; `workdir` is scratch, ours alone. Raises a `JobError`."""
    capacity.require_trackers(spec.tracking)
    store = open_store(spec.output.uri)
    run = Run(spec, store, workdir, log, Stats(spec.run_id, spec.name, workdir))
    published = claim(store, spec)
    if published:
        log("done", run_id=spec.run_id, output=store.uri, note="already published; nothing was written")
        return published
    try:
        return stages(run)
    except BaseException as error:
        failure = classify(error)
        failure.stage, failure.run_id = run.stats.current, spec.run_id
        run.stats.failure = failure_facts(failure, failure.stage, spec.run_id)
        report.keep_evidence(store, run.stats, log)
        raise failure from error


def stages(run: Run) -> Manifest:
    """Every stage in order; each artefact is stored as soon as it is whole, the manifest last."""
    spec, stats = run.spec, run.stats
    prepare_environment(run.workdir)
    run.log("start", name=spec.name, run_id=spec.run_id, output=run.store.uri)
    with stats.phase("fetch"):
        train_sources, held_out_sources = fetch_data(spec.data, run.workdir)
        run.log("fetch", files=sum(len(source.files) for source in train_sources))
    with stats.phase("engine"):  # before anything imports transformers
        backend = engine(run)
    with stats.phase("data", children=True):
        base = fetch_model_config(spec.model, run.workdir)
        prepared = prepare(run, train_sources, held_out_sources, base)
    with stats.phase("weights"):
        to_fetch_bytes = base.weight_bytes if "://" in spec.model.source else 0  # local weights are linked, not copied
        capacity.require_disk(run.workdir, to_fetch_bytes, "the model's weights")
        base = fetch_model_weights(base, spec.model)
        go_offline()
    with stats.phase("load"):
        model = load(run, backend, base, prepared)
    with stats.phase("baseline"):
        before = assess(run, backend, model, prepared)
    with stats.phase("train"):
        start_reserved_bytes = gpu_reserved_bytes()
        result = train(backend, model, spec, prepared, run.workdir, run.log)
        stats.training = result.summary()
    stats.memory = training_memory(start_reserved_bytes, stats.phases[-1].peak_gpu_reserved_bytes, stats.device["total_memory_bytes"])
    with stats.phase("adapter"):
        files = store_weights(run, backend, model, prepared, base)
    with stats.phase("evaluate"):
        after = assess(run, backend, model, prepared)
        write_report(run, model, prepared, base, result, before, after)
        evaluate.check_gates(spec.evaluation.gates, before, after)
    with stats.phase("publish"):
        files += [artefact(run.store, path, f"report/{path.relative_to(run.report)}") for path in export.readable(run.report)]
    files += [stored_file(run.store, "spec.json"), report.store_document(run.store, run.workdir, "stats.json", stats.document())]
    manifest = describe(run, prepared, base, [*train_sources, *(held_out_sources or [])], files)
    publish(run.store, manifest)
    run.log("published", run_id=spec.run_id, output=run.store.uri, files=len(files), bytes=sum(file.bytes for file in files))
    return manifest


# ---------------------------------------------------------------------------------------------- stages in detail


def prepare(run: Run, train: list[FetchedSource], held_out: list[FetchedSource] | None, base: FetchedModel) -> Prepared:
    """Rows to token ids; three samples go to the report before anything is paid for."""
    with run.log.bar("data") as bar:
        prepared = build_dataset(run.spec, train, held_out, base.path, run.workdir, bar.update_total)
    run.stats.data = prepared.report.document()
    write_samples(prepared, run.report)
    run.log("data", **prepared.report.totals())
    for note in prepared.report.notes:
        run.log("note", text=note)
    return prepared


def engine(run: Run) -> Backend:
    """The training engine on its device; a device that is not there ends the run here."""
    spec = run.spec
    here = Path.cwd()
    os.chdir(run.workdir)  # engines write things into the current directory
    backend = open_backend(spec.model.backend)
    os.chdir(here)  # the model's path may be relative to it
    run.stats.device = describe_device(backend.device)
    run.stats.effective = {
        "backend": spec.model.backend,
        "precision": spec.model.precision,
        "optimizer": effective_optimizer(spec.training.optimizer, backend.device),
        "packing": spec.data.packing,
    }
    capacity.require_device(spec, backend.device)
    run.log("engine", device=run.stats.device["name"], **run.stats.effective)
    return backend


def load(run: Run, backend: Backend, base: FetchedModel, prepared: Prepared) -> Any:
    """The model with its fresh adapter, in the precision that was asked for."""
    spec = run.spec
    os.chdir(run.workdir)  # engines pick up what lies in the current directory, too
    capacity.require_memory(base.path, spec, run.stats.device)
    model = backend.load(base.path, spec.model, spec.lora, spec.training.gradient_checkpointing)
    capacity.require_embeddings(model.get_input_embeddings().weight.shape[0], prepared)
    run.log("load", model=base.public_id, revision=base.revision, bytes=base.weight_bytes)
    return model


def assess(run: Run, backend: Backend, model: Any, prepared: Prepared) -> evaluate.Assessment:
    """Held-out loss, exact match and answers of the model as it is now."""
    backend.for_inference(model)
    found = evaluate.assess(model, prepared, run.spec.evaluation.max_new_tokens, run.spec.training.eval_batch_size)
    run.log(run.stats.current, **found.figures())
    return found


def store_weights(run: Run, backend: Backend, model: Any, prepared: Prepared, base: FetchedModel) -> list[File]:
    """Exports what was trained and stores it at once: the adapter, or every weight under merged/."""
    backend.for_inference(model)
    if run.spec.lora is None:
        folder = run.workdir / "merged"
        paths = export.export_full(model, prepared.tokenizer, folder)
    else:
        folder = run.workdir / "adapter"
        paths = export.export_adapter(model, prepared.tokenizer, base.public_id, base.revision, folder)
    files = [artefact(run.store, path, f"{folder.name}/{path.relative_to(folder)}") for path in paths]
    run.log(folder.name, files=len(files), bytes=sum(file.bytes for file in files))
    return files


def write_report(
    run: Run, model: Any, prepared: Prepared, base: FetchedModel, result: TrainResult,
    before: evaluate.Assessment, after: evaluate.Assessment,
) -> None:  # fmt: skip
    """Curves, answers, probe and summary under report/."""
    run.stats.evaluation = {"base": before.figures(), "tuned": after.figures()}
    evaluate.write_probe(model, (prepared.held_out or prepared.train)[0], run.report / "probe.safetensors")
    report.write_losses(result, run.report)
    report.write_answers(prepared, before, after, run.report)
    report.write_summary(run.spec, base.public_id, run.stats, run.report)


def describe(run: Run, prepared: Prepared, base: FetchedModel, sources: Sequence[FetchedSource], files: list[File]) -> Manifest:
    """The manifest of this run."""
    return Manifest(
        run_id=run.spec.run_id,
        name=run.spec.name,
        base={"source": run.spec.model.source, "public_id": base.public_id, "revision": base.revision},
        data=[{"source": s.spec.source, "split": s.spec.split, "revision": s.revision, "sha256": s.sha256} for s in sources],
        chat_template_sha256=hashlib.sha256(prepared.template.encode()).hexdigest(),
        packages=package_versions(),
        results=dict(run.stats.evaluation),
        files=files,
    )
