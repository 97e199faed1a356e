"""From the fetched base to the stored adapter and report: load, baseline, train, adapter, evaluate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import cast

from job.context import Run
from job.data.build import Prepared
from job.evaluation.assess import Assessment
from job.evaluation.gates import check_gates
from job.export import adapter
from job.export.artefacts import Artefacts
from job.export.delivered import BASE, TRAINED_MODEL
from job.export.kinds import left_by_training
from job.export.logits import Comparison
from job.export.tokenizer import require_tokenizer
from job.export.trained import reopen, reopened_name
from job.host.stats import arithmetic, training_memory
from job.ledger.checkpoints import Checkpoints, TrainingOrigin, remove_checkpoints
from job.ledger.leftovers import abort_uploads
from job.ledger.receipts import TRAINED
from job.member import HeldModel, Trained
from job.opinions import Measured, ask_judge, compare_both, note_benchmarks, tell_listeners
from job.plan.require import require_memory
from job.report.summary import mask_secrets, write_answers, write_losses, write_summary
from job.source import FetchedModel, FetchedSource
from job.source.benchmarks import FetchedSet
from job.spec import JobSpec
from job.store import Store, open_store
from job.training.loop import TrainResult
from job.training.methods import METHODS
from job.training.methods.rewards import own_code

PROBE = "probe.safetensors"  # in the report
CHECKPOINTS_VARIABLE = "TUNEJOB_CHECKPOINTS"
KEPT_STATS = ("device", "memory", "data", "training", "evaluation", "delivered", "effective", "planned")


def train_and_store(
    run: Run, model: HeldModel, artefacts: Artefacts, base: FetchedModel, merge_base: FetchedModel, prepared: Prepared
) -> None:
    """From the loaded base to the stored adapter and report; the model is gone from memory afterwards."""
    spec, stats, several = run.spec, run.stats, model.several
    clear_away(run)
    checkpoints = open_checkpoints(run, base, prepared)
    with run.stage("load", children=several):
        load(artefacts, model, base, merge_base)
    with run.stage("baseline", children=several):
        before = measure(artefacts, model, BASE)
    with checkpoints.until_stored():
        with run.stage("combine" if spec.model.adapters else "train", children=several):
            trained = learn(run, model, base, checkpoints)
        result = trained.result
        if result:
            stats.phases[-1].peak_gpu_reserved_bytes = result.peak_gpu_reserved_bytes
        stats.memory = training_memory(
            trained.start_reserved_bytes, stats.phases[-1].peak_gpu_reserved_bytes, stats.device["total_memory_bytes"]
        )
        with run.stage("adapter", children=several):
            folder = run.workdir / left_by_training(spec.lora is None)
            weights = model.export(folder, run.report / PROBE)
            stored = artefacts.store_files(weights)
            run.log(folder.name, files=len(stored), bytes=sum(file.bytes for file in stored))
        with run.stage("evaluate", children=True):
            after = measure(artefacts, model, TRAINED_MODEL)
            model.end()
            before, after = ask_judge(artefacts, before, after)
            compare_both(artefacts, before, after)
            write_report(run, prepared, result, before[0], after[0])
            require_tokenizer(folder, prepared)
            answers = check_reload(artefacts, base, stats.device["kind"])
            stored += artefacts.store_files(adapter.files_by_key(run.report))
        kept = {name: getattr(stats, name) for name in KEPT_STATS}
        facts = {**kept, "revision": base.revision, "chat_template_sha256": prepared.template_sha256,
                 "origin": asdict(origin_of(run.spec, base, prepared)),
                 "samples": samples(prepared, before[0], after[0]),
                 "answers": answers, "reopened": reopened_name(artefacts)}  # fmt: skip
        artefacts.keep_stored(TRAINED, stored, weights, facts)
    checkpoints.remove()
    asked = run.receipts[TRAINED].facts["samples"]  # the summary is not in the receipt: it is written again at the end
    write_summary(spec, base.public_id, stats, [], asked, run.report)


def learn(run: Run, model: HeldModel, base: FetchedModel, checkpoints: Checkpoints) -> Trained:
    """The training, or in its place the combination of adapters."""
    spec, trained = run.spec, model.train(checkpoints)
    if trained.result is None:
        run.log("combined", adapters=len(base.adapters), method=spec.model.combine and spec.model.combine.method)
        return trained
    run.stats.training = trained.result.summary()
    run.log("trained", **run.stats.training)
    for remark in METHODS[spec.training.method].remarks(spec, trained.result.history):
        run.log("note", text=remark)
        run.stats.data["notes"].append(remark)
    return trained


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


def load(artefacts: Artefacts, model: HeldModel, base: FetchedModel, merge_base: FetchedModel) -> None:
    """The model with its adapter, fresh or given, in the precision that was asked for."""
    run = artefacts.run
    os.chdir(run.workdir)  # engines pick up what is in the current directory, too
    require_memory(base.path, run.spec, run.stats.device)
    run.stats.effective["compute_dtype"] = model.load(
        base, merge_base.path, artefacts.delivered.prepared, artefacts.benchmarks
    )
    run.log("load", model=base.public_id, revision=base.revision, bytes=base.weight_bytes)


def measure(artefacts: Artefacts, model: HeldModel, name: str) -> Measured:
    """Metrics and answers of the model as it is now, and its losses on the compared rows."""
    run, delivered = artefacts.run, artefacts.delivered
    rewards = METHODS[run.spec.training.method].rewards
    beside_itself = name == BASE and rewards is not None and rewards.by_reference  # the base likes all answers alike
    asked = delivered.to_measure(pairs=rewards is not None and not beside_itself)
    parts = model.measure(asked, run.stats.current)
    found = Assessment.of(parts, delivered.prepared, run.spec, asked)
    own = {name: value for name, value in found.figures.items() if name not in parts.tasks}
    run.log(run.stats.current, **own)
    note_benchmarks(artefacts, parts)
    if late := len(found.unanswered):
        asked_of_rows = len(found.row_answers)
        run.log(
            "note",
            text=f"{asked_of_rows - late} of {asked_of_rows} held-out rows answered within evaluation.max_minutes",
        )
    losses = delivered.losses(found)
    delivered.note(name, delivered.beside(found, losses))
    return found, losses


def write_report(
    run: Run, prepared: Prepared, result: TrainResult | None, before: Assessment, after: Assessment
) -> None:
    """Curves and answers under report/."""
    if result:
        write_losses(result, run.report)
    write_answers(prepared, before, after, run.report)
    mask_secrets(run.report.rglob("*"), run.log)


def samples(prepared: Prepared, before: Assessment, after: Assessment) -> list[dict[str, str | None]]:
    """The spec's prompts with both answers and its references, for the card; no row of the data is among them."""
    asked = zip(prepared.questions, before.answers, after.answers, strict=True)
    return [
        {"prompt": question.text, "base": base, "trained": trained, "reference": question.reference}
        for question, base, trained in asked
    ]


def check_reload(artefacts: Artefacts, base: FetchedModel, device: str) -> list[str | None]:
    """Proves that what was stored is what was trained, measures it like all that is made of it; returns its answers."""
    found = reopen(artefacts, base.path, device, artefacts.run.report / PROBE)
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
