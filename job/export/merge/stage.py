"""The merge stage: whole weights from base and adapter, reopened and compared before anything else is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.export.adapter import files_by_key
from job.export.artefacts import Artefacts, Measured
from job.export.merge.onto import ADAPTED, ORIGINAL, TRAINED, choose, require_adapted
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
    """Merged weights that have passed their test: the folder, and the figures of it and of its 4-bit form."""

    folder: Path
    four_bit: Path | None
    found: Mapping[str, Any]

    def store(self, artefacts: Artefacts) -> None:
        """Stores what is asked for. Raises `GateError` if a gate of the spec does not hold for it."""
        given, found = artefacts.run.spec.export.limits, self.found
        if "merged" in artefacts.outstanding:
            figures = dict(found["merged"] or {}) | {"perplexity": found["perplexity"]}
            limits = {"logit_ratio": given.merged_logits, "kl": given.merged_kl}
            artefacts.keep("merged", files_by_key(self.folder), figures, limits, measured(artefacts, found))
        if self.four_bit is not None:
            files, packed = files_by_key(self.four_bit), found["merged_4bit"]
            limits = {"kl": given.merged_4bit_kl}
            artefacts.keep("merged_4bit", files, packed["figures"], limits, measured(artefacts, packed))
            artefacts.forget(self.four_bit)
        if "imatrix" in artefacts.outstanding:
            path = artefacts.run.workdir / IMATRIX
            path.chmod(0o644)
            artefacts.keep("imatrix", {f"gguf/{IMATRIX}": path}, {}, {}, None)


def measured(artefacts: Artefacts, found: Mapping[str, Any]) -> Measured:
    return Measured(found["measured"], artefacts.delivered.texts(found["answers"]))


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
    asked = {"base": str(merge_base), "adapter": str(artefacts.recall("adapter")), "target": str(folder),
             "end_ids": artefacts.delivered.prepared.report.stop_token_ids, "device": device,
             "trained": str(base) if onto == TRAINED else None, "packed": list(artefacts.packed)}  # fmt: skip
    if device == "cpu":
        planned_bytes = artefacts.planned(lambda memory: memory.merge(onto == TRAINED))
        report = run_child(
            "job.export.merge.write",
            asked,
            artefacts.run.children,
            "merging the adapter",
            planned_bytes=planned_bytes,
        )
    else:
        # host memory holds a few blocks only, and here the GPU is open already: a process of its own would take 10 s
        # to get there
        report = merge_in_process(asked)
    require_tokenizer(folder, artefacts.delivered.prepared)
    artefacts.run.log("merge", **report)
    return folder


def compare(artefacts: Artefacts, folder: Path, device: str) -> MergedWeights:
    """Opens the merged weights in a process without the training engine; leaves the logits that GGUFs are held against.

    Raises `GateError` if the model is not the one that was trained.
    """
    four_bit = artefacts.run.workdir / "merged_4bit" if "merged_4bit" in artefacts.outstanding else None
    if four_bit is not None:
        artefacts.require("four_bit")
        asked = {"merged": str(folder), "target": str(four_bit), "device": device}
        planned_bytes = artefacts.planned(Memory.four_bit)
        run_child("job.export.four_bit", asked, artefacts.run.children, "4-bit weights", planned_bytes=planned_bytes)
    artefacts.require("compare")
    asked = comparison(artefacts, folder, four_bit, device)
    planned_bytes = artefacts.planned(Memory.compare)
    found = run_child(
        "job.export.compare",
        asked,
        artefacts.run.children,
        "comparison of the merged weights",
        planned_bytes=planned_bytes,
    )
    artefacts.run.log("compare", perplexity=found["perplexity"], stopped=found["stopped"], **(found["merged"] or {}))
    return MergedWeights(folder, four_bit, found)


def comparison(artefacts: Artefacts, merged: Path, four_bit: Path | None, device: str) -> dict[str, Any]:
    """The request to `job.export.compare`."""
    workdir, spec = artefacts.run.workdir, artefacts.run.spec
    export, limits = spec.export, spec.export.limits
    made_here = artefacts.merges or spec.lora is None
    onto = artefacts.run.receipts[MERGED_ONTO].facts["onto"] if artefacts.merges else TRAINED
    against = workdir / (ADAPTED if onto == ORIGINAL and compares_original(spec) else TRAINED_LOGITS)
    rows = calibration_rows(artefacts.delivered.prepared, export.imatrix_tokens) if export.imatrix else []
    return {
        **artefacts.delivered.request(),
        "merged": str(merged),
        "merged_4bit": four_bit and str(four_bit),
        "against": str(against) if made_here else None,
        "trained": str(workdir / TRAINED_LOGITS),
        "calibration": rows,
        "device": device,
        "reference": str(workdir / REFERENCE),
        "imatrix": str(workdir / IMATRIX) if export.imatrix else None,
        "limits": {
            "max_logit_ratio": limits.merged_logits,
            "max_kl": limits.merged_kl,
            "max_kl_4bit": limits.merged_4bit_kl,
        },
    }
