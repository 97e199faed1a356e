"""Which base the adapter is merged onto: the one it was trained on, dequantised, or the original 16-bit one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from job.evaluation.metrics.losses import HELD_OUT_LOSS, TRAIN_LOSS
from job.evaluation.metrics.record import DIGITS
from job.export.adapted import AdaptedRequest
from job.export.artefacts import Artefacts
from job.export.trained import TRAINED_LOGITS, reopened_name
from job.gguf.quality import ModelStep
from job.host.child import run_child
from job.ledger.receipts import MERGED_ONTO
from job.plan.host_memory import Memory
from job.plan.steps import compares_original, may_dequantise

ADAPTED = "adapted.safetensors"
TRAINED, ORIGINAL = "trained", "original"


def choose(artefacts: Artefacts, merge_base: Path, device: str) -> str:
    """TRAINED or ORIGINAL: as the spec says, or the one on which the adapter has the lower loss on the compared rows.

    Either is measured before anything is merged: merging adds no more than the rounding of the merged weights.
    """
    run = artefacts.run
    spec, chosen = run.spec, MERGED_ONTO in run.receipts
    if not chosen and may_dequantise(spec) and spec.export.merge_onto == "auto":
        known = run.stats.delivered["artefacts"][reopened_name(artefacts)]
        trained = known.get(HELD_OUT_LOSS.name, known.get(TRAIN_LOSS))
        losses = {TRAINED: trained, ORIGINAL: round(measure_adapted(artefacts, merge_base, device).loss, DIGITS)}
        run.receipts.add(MERGED_ONTO, [], {"onto": min(losses, key=losses.__getitem__), "losses": losses})
    elif not chosen:
        run.receipts.add(MERGED_ONTO, [], {"onto": TRAINED if may_dequantise(spec) else ORIGINAL, "losses": {}})
    found = run.stats.delivered[MERGED_ONTO] = dict(run.receipts[MERGED_ONTO].facts)
    run.log("merge onto", **found)
    return str(found["onto"])


def require_adapted(artefacts: Artefacts, merge_base: Path, device: str) -> None:
    """Measures the adapter on the original base where something must say what it says there, and that is not known."""
    onto = artefacts.run.receipts[MERGED_ONTO].facts["onto"]
    needed = (artefacts.merges and onto == ORIGINAL) or artefacts.any_on_base
    if needed and compares_original(artefacts.run.spec) and not (artefacts.run.workdir / ADAPTED).exists():
        measure_adapted(artefacts, merge_base, device)


def measure_adapted(artefacts: Artefacts, merge_base: Path, device: str) -> ModelStep:
    """The loss of the adapter on the original base, and its step from the trained model, on the compared rows; what
    it says of them lies in `workdir/ADAPTED` then.
    """
    artefacts.require("adapted")
    run = artefacts.run
    asked = AdaptedRequest(
        artefacts.delivered.measure(),
        base=merge_base,
        adapter=artefacts.recall("adapter"),
        device=device,
        trained=run.workdir / TRAINED_LOGITS,
        adapted=run.workdir / ADAPTED,
        held_to_it=artefacts.any_on_base,
    )
    planned_bytes, what = artefacts.planned(Memory.adapted), "the adapter on its original base"
    found = run_child("job.export.adapted", asked, run.children, what, planned_bytes=planned_bytes, answer=ModelStep)
    run.log("adapted", **asdict(found))
    return found
