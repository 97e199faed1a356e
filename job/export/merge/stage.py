"""The merge stage: whole weights from base and adapter, reopened and compared before anything else is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from job.export.adapter import files_by_key
from job.export.artefacts import Artefacts, Measured
from job.export.benchmarked import of_merged
from job.export.compare import CompareReport, CompareRequest, Examined, ReopenedForm
from job.export.four_bit import Conversion
from job.export.kinds import kind_of
from job.export.merge.onto import ADAPTED, ORIGINAL, TRAINED, choose, require_adapted
from job.export.merge.write import MergeReport, MergeRequest, TrainedBase
from job.export.merge.write import handle as merge_in_process
from job.export.rows import calibration_rows
from job.export.tokenizer import require_tokenizer
from job.export.trained import TRAINED_LOGITS, require_reopened
from job.host.child import run_child
from job.ledger.receipts import MERGED_ONTO
from job.plan.host_memory import Memory
from job.plan.steps import compares_original

REFERENCE, IMATRIX = "reference.safetensors", "imatrix.gguf"


@dataclass(frozen=True)
class MergedWeights:
    """Merged weights that have passed their test: the folder, those of their other forms by name, and the figures."""

    folder: Path
    forms: Mapping[str, Path]
    found: CompareReport
    benchmarks: Mapping[str, float]

    def store(self, artefacts: Artefacts) -> None:
        """Begins to store what is asked for. Raises `GateError` if a gate of the spec does not hold for it."""
        if "merged" in artefacts.outstanding:
            keep(artefacts, "merged", self.folder, self.found.merged, self.benchmarks)
        for name, folder in self.forms.items():
            keep(artefacts, name, folder, self.found.forms[name], {}, [folder])
        if "imatrix" in artefacts.outstanding:
            path = artefacts.run.workdir / IMATRIX
            path.chmod(0o644)
            artefacts.keep("imatrix", {f"gguf/{IMATRIX}": path}, {}, None)


def keep(
    artefacts: Artefacts,
    name: str,
    folder: Path,
    found: Examined,
    benchmarks: Mapping[str, float],
    scratch: Sequence[Path] = (),
) -> None:
    """Begins to store a folder of weights."""
    figures = asdict(found.comparison) if found.comparison else {}
    measured = Measured(found.measured, artefacts.delivered.texts(found.answers), found.sums, benchmarks)
    artefacts.keep(name, files_by_key(folder), figures | {"perplexity": found.perplexity}, measured, scratch)


def merge(artefacts: Artefacts, base: Path, merge_base: Path, device: str) -> Path:
    """The folder `workdir/merged` with whole weights: made of base and adapter, trained, or as an earlier try has
    stored them; beside it, what the trained model says.

    `base` was trained on. Raises `GateError` if a tensor is not what base and adapter make it.
    """
    require_reopened(artefacts, base, device)
    folder = artefacts.run.workdir / "merged"
    if artefacts.run.spec.lora is None:
        return artefacts.recall(folder.name)
    onto = choose(artefacts, merge_base, device)
    require_adapted(artefacts, merge_base, device)
    if not artefacts.merges:
        return artefacts.recall(folder.name)
    artefacts.require("merge")
    asked = MergeRequest(
        base=merge_base,
        adapter=artefacts.recall("adapter"),
        target=folder,
        end_ids=artefacts.delivered.prepared.report.stop_token_ids,
        device=device,
        onto=TrainedBase(base, list(artefacts.packed)) if onto == TRAINED else None,
    )
    if device == "cpu":
        planned_bytes = artefacts.planned(lambda memory: memory.merge(onto == TRAINED))
        report = run_child(
            "job.export.merge.write",
            asked,
            artefacts.run.children,
            "merging the adapter",
            planned_bytes=planned_bytes,
            answer=MergeReport,
        )
    else:
        # host memory holds a few blocks only, and here the GPU is open already: a process of its own would take 10 s
        # to get there
        report = merge_in_process(asked)
    require_tokenizer(folder, artefacts.delivered.prepared)
    artefacts.run.log("merge", **asdict(report))
    return folder


def compare(artefacts: Artefacts, folder: Path, device: str) -> MergedWeights:
    """Opens the merged weights in a process without the training engine; leaves the logits that GGUFs are held against.

    Raises `GateError` if the model is not the one that was trained.
    """
    run = artefacts.run
    forms = {name: form for name in artefacts.outstanding if (form := kind_of(name).form)}
    for name, form in forms.items():
        artefacts.require(form.step)
        asked = Conversion(folder, run.workdir / name, device)
        planned_bytes = artefacts.planned(form.ram_bytes)
        run_child(form.module, asked, run.children, form.what, planned_bytes=planned_bytes, answer=dict)
    artefacts.require("compare")
    examined = [
        ReopenedForm(name, run.workdir / name, form.module, run.spec.limits(name)["kl"]) for name, form in forms.items()
    ]
    found = run_child(
        "job.export.compare",
        comparison(artefacts, folder, tuple(examined), device),
        run.children,
        "comparison of the merged weights",
        planned_bytes=artefacts.planned(Memory.compare),
        answer=CompareReport,
    )
    merged = found.merged
    figures = asdict(merged.comparison) if merged.comparison else {}
    run.log("compare", perplexity=merged.perplexity, stopped=found.stopped, **figures)
    benchmarks = of_merged(artefacts, folder, device)
    return MergedWeights(folder, {form.name: form.folder for form in examined}, found, benchmarks)


def comparison(artefacts: Artefacts, merged: Path, forms: tuple[ReopenedForm, ...], device: str) -> CompareRequest:
    workdir, spec = artefacts.run.workdir, artefacts.run.spec
    export, limits = spec.export, spec.limits("merged")
    made_here = artefacts.merges or spec.lora is None
    onto = artefacts.run.receipts[MERGED_ONTO].facts["onto"] if artefacts.merges else TRAINED
    against = workdir / (ADAPTED if onto == ORIGINAL and compares_original(spec) else TRAINED_LOGITS)
    rows = calibration_rows(artefacts.delivered.prepared, export.imatrix_tokens) if export.imatrix else []
    return CompareRequest(
        artefacts.delivered.measure(),
        merged=merged,
        forms=forms,
        against=against if made_here else None,
        trained=workdir / TRAINED_LOGITS,
        calibration=rows,
        device=device,
        reference=workdir / REFERENCE,
        imatrix=workdir / IMATRIX if export.imatrix else None,
        max_logit_ratio=limits["logit_ratio"],
        max_kl=limits["kl"],
    )
