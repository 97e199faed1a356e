"""The merge stage: whole weights from base and adapter, reopened and compared before anything else is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.export.adapter import files_by_key
from job.export.artefacts import Artefacts
from job.export.merge.write import handle as merge_in_process
from job.export.rows import calibration_rows, check_prompt, check_rows
from job.export.tokenizer import require_tokenizer
from job.host.child import run_child
from job.plan.host_memory import Memory

if TYPE_CHECKING:
    from job.data.build import Prepared

REFERENCE, IMATRIX = "reference.safetensors", "imatrix.gguf"


@dataclass(frozen=True)
class MergedWeights:
    """Merged weights that have passed their test: the folder, and the figures of it and of its 4-bit form."""

    folder: Path
    four_bit: Path | None
    found: Mapping[str, Any]

    def store(self, artefacts: Artefacts) -> None:
        """Stores what is asked for."""
        given, figures = (
            artefacts.run.spec.export.limits,
            dict(self.found["merged"] or {}) | {"perplexity": self.found["perplexity"]},
        )
        if "merged" in artefacts.outstanding:
            artefacts.keep(
                "merged",
                files_by_key(self.folder),
                figures,
                {"logit_ratio": given.merged_logits, "kl": given.merged_kl},
            )
        if self.four_bit is not None:
            artefacts.keep(
                "merged_4bit", files_by_key(self.four_bit), self.found["merged_4bit"], {"kl": given.merged_4bit_kl}
            )
            artefacts.forget(self.four_bit)
        if "imatrix" in artefacts.outstanding:
            path = artefacts.run.workdir / IMATRIX
            path.chmod(0o644)
            artefacts.keep("imatrix", {f"gguf/{IMATRIX}": path}, {}, {})


def merge(artefacts: Artefacts, prepared: Prepared, base: Path, device: str) -> Path:
    """The folder `workdir/merged` with whole weights: made of base and adapter, trained, or as an earlier try has
    stored them.

    Raises `GateError` if a tensor is not what base and adapter make it.
    """
    folder = artefacts.run.workdir / "merged"
    if not artefacts.merges:
        return artefacts.recall(folder.name)
    artefacts.require("merge")
    asked = {"base": str(base), "adapter": str(artefacts.recall("adapter")), "target": str(folder),
             "end_ids": prepared.report.stop_token_ids, "device": device}  # fmt: skip
    if device == "cpu":
        planned_bytes = artefacts.planned(Memory.merge)
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
    require_tokenizer(folder, prepared)
    artefacts.run.log("merge", **report)
    return folder


def compare(artefacts: Artefacts, prepared: Prepared, base: Path, folder: Path, device: str) -> MergedWeights:
    """Opens the merged weights in a process without the training engine; leaves the logits that GGUFs are held against.

    Raises `GateError` if the model is not the one that was trained.
    """
    adapter = artefacts.recall("adapter") if artefacts.merges else None
    four_bit = artefacts.run.workdir / "merged_4bit" if "merged_4bit" in artefacts.outstanding else None
    if four_bit is not None:
        artefacts.require("four_bit")
        asked = {"merged": str(folder), "target": str(four_bit), "device": device}
        planned_bytes = artefacts.planned(Memory.four_bit)
        run_child("job.export.four_bit", asked, artefacts.run.children, "4-bit weights", planned_bytes=planned_bytes)
    artefacts.require("compare")
    asked = comparison(artefacts, prepared, base if adapter else None, adapter, folder, four_bit, device)
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


def comparison(
    artefacts: Artefacts,
    prepared: Prepared,
    base: Path | None,
    adapter: Path | None,
    merged: Path,
    four_bit: Path | None,
    device: str,
) -> dict[str, Any]:
    """The request to `job.export.compare`."""
    export = artefacts.run.spec.export
    probe = artefacts.run.workdir / "report" / "probe.safetensors"
    whole = artefacts.run.spec.lora is None and probe.is_file()  # every weight was trained, in this very try
    return {
        "base": base and str(base),
        "adapter": adapter and str(adapter),
        "probe": str(probe) if whole else None,
        "merged": str(merged),
        "merged_4bit": four_bit and str(four_bit),
        "rows": check_rows(prepared, export.check_tokens),
        "prompt": check_prompt(prepared),
        "stop_token_ids": prepared.report.stop_token_ids,
        "max_new_tokens": artefacts.run.spec.evaluation.max_new_tokens,
        "calibration": calibration_rows(prepared, export.imatrix_tokens) if export.imatrix else [],
        "device": device,
        "reference": str(artefacts.run.workdir / REFERENCE),
        "imatrix": str(artefacts.run.workdir / IMATRIX) if export.imatrix else None,
        "limits": limits(artefacts),
    }


def limits(artefacts: Artefacts) -> dict[str, float]:
    given = artefacts.run.spec.export.limits
    return {"max_logit_ratio": given.merged_logits, "max_kl": given.merged_kl, "max_kl_4bit": given.merged_4bit_kl}
