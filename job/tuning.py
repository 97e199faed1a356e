"""From the fetched base to the stored adapter and report: load, baseline, train, adapter, evaluate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from job.context import TRAINED, Run
from job.data.build import Prepared, Question
from job.evaluation.assess import Assessment, MarginsOf, assess
from job.evaluation.gates import check_gates
from job.evaluation.loss import loss_of
from job.evaluation.margins import equal_margins, margins_of
from job.evaluation.probe import write_probe
from job.export import adapter
from job.export.artefacts import Artefacts
from job.export.delivered import BASE, TRAINED_MODEL
from job.export.kinds import left_by_training
from job.export.logits import Comparison
from job.export.merge.write import require_mergeable
from job.export.tokenizer import require_tokenizer
from job.export.trained import reopen, reopened_name
from job.host.micro_batch import free_memory
from job.host.stats import arithmetic, gpu_reserved_bytes, training_memory
from job.ledger.checkpoints import Checkpoints, TrainingOrigin, remove_checkpoints
from job.ledger.leftovers import abort_uploads
from job.opinions import Measured, ask_judge, compare_both, tell_listeners, with_benchmarks
from job.plan.model_size import size_of_base
from job.plan.require import require_checkpoints, require_embeddings, require_memory
from job.report.ending import shortened
from job.report.kept import question as asked_of
from job.report.kept import surroundings
from job.report.summary import mask_secrets, write_answers, write_losses, write_summary
from job.several import train_on_cards
from job.source import FetchedModel, FetchedSource
from job.source.benchmarks import FetchedSet
from job.spec import JobSpec
from job.spec.optimizers import effective_optimizer
from job.store import Store, open_store
from job.training.backend import Backend, loading
from job.training.checkpointing import checkpointing_of
from job.training.checks import require_compute_dtype
from job.training.loop import TrainResult, train
from job.training.methods import METHODS
from job.training.methods.rewards import own_code
from job.training.start import combine, go_on_from

CHECKPOINTS_VARIABLE = "TUNEJOB_CHECKPOINTS"
KEPT_STATS = ("device", "memory", "data", "training", "evaluation", "delivered", "effective", "planned")


def train_and_store(
    run: Run, backend: Backend, artefacts: Artefacts, base: FetchedModel, merge_base: FetchedModel, prepared: Prepared
) -> None:
    """From the loaded base to the stored adapter and report; the model is gone from memory afterwards."""
    spec, stats = run.spec, run.stats
    clear_away(run)
    checkpoints = open_checkpoints(run, base, prepared)
    with run.stage("load"):
        model = load(run, backend, base, merge_base, prepared)
    with run.stage("baseline"):
        before = measure(artefacts, backend, model, BASE)
    with checkpoints.until_stored():
        with run.stage("combine" if spec.model.adapters else "train", children=stats.effective["processes"] > 1):
            start_reserved_bytes = gpu_reserved_bytes()
            if stats.effective["processes"] == 1 or spec.model.adapters:
                result = learn(run, backend, model, base, prepared, checkpoints)
            else:
                del model  # its card is one of those that train
                free_memory()
                model, result = train_on_cards(run, backend, base, prepared, checkpoints)
        if result:
            stats.phases[-1].peak_gpu_reserved_bytes = result.peak_gpu_reserved_bytes
        stats.memory = training_memory(
            start_reserved_bytes, stats.phases[-1].peak_gpu_reserved_bytes, stats.device["total_memory_bytes"]
        )
        with run.stage("adapter"):
            folder, weights = export_weights(run, backend, model, prepared, base)
            stored = artefacts.store_files(weights)
            run.log(folder.name, files=len(stored), bytes=sum(file.bytes for file in stored))
        with run.stage("evaluate", children=True):
            after = measure(artefacts, backend, model, TRAINED_MODEL)
            before, after = ask_judge(artefacts, before, after)
            compare_both(artefacts, before, after)
            write_report(run, model, prepared, result, before[0], after[0])
            del model
            free_memory()
            require_tokenizer(folder, prepared)
            answers = check_reload(artefacts, base, backend.device)
            stored += artefacts.store_files(adapter.files_by_key(run.report))
        kept = {name: getattr(stats, name) for name in KEPT_STATS}
        facts = {**kept, "origin": asdict(origin_of(run.spec, base, prepared)),
                 "samples": samples(prepared, before[0], after[0]),
                 "answers": answers, "reopened": reopened_name(artefacts)}  # fmt: skip
        artefacts.keep_stored(TRAINED, stored, weights, facts)
    checkpoints.remove()
    write_summary(spec, base.public_id, stats, [], run.report)  # not in the receipt: it is written again at the end


def learn(
    run: Run, backend: Backend, model: Any, base: FetchedModel, prepared: Prepared, checkpoints: Checkpoints
) -> TrainResult | None:
    """The training; None where adapters are combined instead."""
    spec = run.spec
    if spec.model.adapters:
        combine(model, base.adapters, spec)
        run.log("combined", adapters=len(base.adapters), method=spec.model.combine and spec.model.combine.method)
        return None
    result = train(backend, model, size_of_base(spec, base), spec, prepared, run.workdir, checkpoints, run.log)
    run.stats.training = result.summary()
    run.log("trained", **run.stats.training)
    for remark in METHODS[spec.training.method].remarks(spec, result.history):
        run.log("note", text=remark)
        run.stats.data["notes"].append(remark)
    return result


def pin(run: Run, sources: Sequence[FetchedSource | FetchedSet], models: Sequence[FetchedModel]) -> None:
    """Once anything is stored, a rerun reads the same commits of the Hub, wherever its branches go."""
    given = [adapter for model in models for adapter in model.adapters]
    places = [(one.pointer, one.revision) for group in (sources, models, given) for one in group]
    run.claim.pin({pointer: commit for pointer, commit in places if commit})


def origin_of(spec: JobSpec, base: FetchedModel, prepared: Prepared) -> TrainingOrigin:
    given = "".join(f" with adapter {adapter.sha256}" for adapter in base.adapters)
    given += "".join(f" rewarded by {sha256}" for sha256 in own_code(spec.training.grpo))
    return TrainingOrigin(spec.run_id, f"{base.public_id}@{base.revision}{given}", prepared.digest)


def open_checkpoints(run: Run, base: FetchedModel, prepared: Prepared) -> Checkpoints:
    """Those of this run on this base and these rows, where the environment, the spec or the output says."""
    return Checkpoints(
        checkpoint_store(run.spec, run.store)[0],
        origin_of(run.spec, base, prepared),
        run.spec.output.checkpoints,
        run.log,
        arithmetic(run.stats.device),
        run.claim.hold,
    )


def checkpoint_store(spec: JobSpec, output: Store) -> tuple[Store, str]:
    """Where checkpoints go, `output` unless something else is named, and what names it."""
    if address := os.environ.get(CHECKPOINTS_VARIABLE):
        return open_store(address), CHECKPOINTS_VARIABLE
    if address := spec.output.checkpoints.uri:
        return open_store(address), "/output/checkpoints/uri"
    return output, "/output/uri"


def clear_away(run: Run) -> None:
    """What is to be replaced, and what killed tries left unfinished. Not before the rows are read: by then most of what
    can be wrong is known, and who began at the same time has most likely given up.
    """
    run.lease.require()
    if run.claim.clear():
        remove_checkpoints(checkpoint_store(run.spec, run.store)[0], run.spec.run_id, run.log)
    abort_uploads(run.store, "", run.log)


def require_same_origin(run: Run, base: FetchedModel, prepared: Prepared) -> None:
    """Raises `InputError` if what an earlier try has trained is of another base or other rows than are there now."""
    found = run.receipts[TRAINED].facts.get("origin", {})  # another version's receipt may not say
    origin_of(run.spec, base, prepared).require(
        found, "what is stored was trained on", "Bring it back, or choose another output"
    )


def recall(artefacts: Artefacts) -> None:
    """What an earlier try found out; it has stored the adapter and the report, and may have left checkpoints."""
    run = artefacts.run
    clear_away(run)
    remove_checkpoints(checkpoint_store(run.spec, run.store)[0], run.spec.run_id, run.log)
    facts = run.receipts[TRAINED].facts
    for name in KEPT_STATS:
        setattr(run.stats, name, facts.get(name, {}))  # another version's receipt may lack one
    artefacts.recall_figures()
    tell_listeners(run)
    run.log("trained before", files=len(run.receipts[TRAINED].files))


def load(run: Run, backend: Backend, base: FetchedModel, merge_base: FetchedModel, prepared: Prepared) -> Any:
    """The model with its adapter, fresh or given, in the precision that was asked for."""
    spec = run.spec
    os.chdir(run.workdir)  # engines pick up what is in the current directory, too
    require_memory(base.path, spec, run.stats.device)
    with loading():
        checkpointing = checkpointing_of(spec, size_of_base(spec, base), backend.device)
        model = backend.load(base.path, spec.model, spec.lora, checkpointing)
    if spec.model.adapter:
        go_on_from(model, base.adapters[0])
    run.stats.effective["compute_dtype"] = require_compute_dtype(model, backend.device)
    require_checkpoints(run.workdir, spec, model, effective_optimizer(spec.training.optimizer, backend.device))
    require_embeddings(model.get_input_embeddings().weight.shape[0], prepared)
    if spec.lora is not None and spec.needs_merge:
        require_mergeable(model, merge_base.path)
    run.log("load", model=base.public_id, revision=base.revision, bytes=base.weight_bytes)
    return model


def measure(artefacts: Artefacts, backend: Backend, model: Any, name: str) -> Measured:
    """Metrics and answers of the model as it is now, and its losses on the compared rows."""
    run, delivered = artefacts.run, artefacts.delivered
    backend.for_inference(model)
    batch_rows = run.spec.training.eval_batch_size
    prompts = [{"prompt": question.text} for question in delivered.prepared.questions]
    around = surroundings(prompts, run.spec.evaluation.prompts)

    def heard(question: Question, text: str) -> None:
        run.log(
            "answer",
            stage=run.stats.current,
            prompt=shortened(asked_of({"prompt": question.text}, around)),
            reference=None if question.reference is None else shortened(question.reference),
            answer=shortened(text),
        )

    with run.log.live(run.stats.current) as bar:
        evaluation, about_pairs = run.spec.evaluation, margins(run.spec, delivered.prepared, name)
        found = assess(model, delivered.prepared, evaluation, batch_rows, bar, heard, about_pairs)
    run.log(run.stats.current, **found.figures)
    found = with_benchmarks(artefacts, model, found)
    if late := len(found.unanswered):
        asked = len(found.row_answers)
        run.log("note", text=f"{asked - late} of {asked} held-out rows answered within evaluation.max_minutes")
    pad = delivered.prepared.tokenizer.pad_token_id
    losses = delivered.losses(found, lambda rows: loss_of(model, rows, batch_rows, pad))
    delivered.note(name, delivered.beside(found, losses))
    return found, losses


def margins(spec: JobSpec, prepared: Prepared, name: str) -> MarginsOf | None:
    """How held-out pairs are measured of `name`, where the method learns from pairs, or from answers with labels."""
    method, pad = METHODS[spec.training.method], prepared.tokenizer.pad_token_id
    if (rewards := method.rewards) is None:
        return None
    if rewards.by_reference and name == BASE:
        return lambda model, rows, progress: equal_margins(rows)  # beside itself, the base likes all answers alike
    settings = getattr(spec.training, method.name)
    return lambda model, rows, progress: margins_of(model, rows, rewards, settings, pad, progress)


def export_weights(
    run: Run, backend: Backend, model: Any, prepared: Prepared, base: FetchedModel
) -> tuple[Path, dict[str, Path]]:
    """Writes what was trained, the adapter or every weight under merged/: the folder, and its files by key."""
    backend.for_inference(model)
    whole = run.spec.lora is None
    folder = run.workdir / left_by_training(whole)
    if whole:
        return folder, adapter.export_full(model, prepared.tokenizer, prepared.report.stop_token_ids, base, folder)
    return folder, adapter.export_adapter(model, prepared.tokenizer, base, folder)


def write_report(
    run: Run, model: Any, prepared: Prepared, result: TrainResult | None, before: Assessment, after: Assessment
) -> None:
    """Curves, answers and probe under report/."""
    write_probe(model, (prepared.held_out or prepared.train)[0], run.report / "probe.safetensors")
    if result:
        write_losses(result, run.report)
    write_answers(prepared, before, after, run.report)
    mask_secrets(run.report.rglob("*"), run.log)


def samples(prepared: Prepared, before: Assessment, after: Assessment) -> list[dict[str, str]]:
    """The spec's prompts with both answers, for the card; no row of the data is among them."""
    asked = zip(prepared.questions, before.answers, after.answers, strict=True)
    return [{"prompt": question.text, "base": base, "trained": trained} for question, base, trained in asked]


def check_reload(artefacts: Artefacts, base: FetchedModel, device: str) -> list[str | None]:
    """Proves that what was stored is what was trained, measures it like all that is made of it; returns its answers."""
    found = reopen(artefacts, base.path, device, artefacts.run.report / "probe.safetensors")
    probe = cast("Comparison", found.probe)
    artefacts.run.log("reload", **asdict(probe))
    texts = artefacts.delivered.texts(found.answers)
    step = replace(found.measured, kl=probe.kl, same_top_token=probe.same_top_token)
    name, known = reopened_name(artefacts), artefacts.delivered.figures(step, texts, found.sums)
    artefacts.delivered.note(name, known)
    artefacts.run.log("delivered", artefact=name, **known)
    return texts


def require_gates(artefacts: Artefacts) -> None:
    """Raises `GateError` for each gate that does not hold for the trained model, or for what was stored of it."""
    run, known = artefacts.run, artefacts.run.stats.delivered["artefacts"]
    check_gates(
        run.spec.evaluation.gates, TRAINED_MODEL, run.stats.evaluation[BASE], run.stats.evaluation[TRAINED_MODEL]
    )
    artefacts.delivered.require(reopened_name(artefacts), known[reopened_name(artefacts)])
