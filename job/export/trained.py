"""The trained model, reopened from what was stored: the measure of everything that is made of it."""

from __future__ import annotations

from pathlib import Path

from job.export.artefacts import Artefacts
from job.export.kinds import left_by_training
from job.export.reload import Reloaded, ReloadRequest
from job.host.child import run_child

TRAINED_LOGITS = "trained.safetensors"


def reopen(artefacts: Artefacts, base: Path, device: str, probe: Path | None) -> Reloaded:
    """Opens what was stored, adapter on `base` or whole weights, in a process that never saw the training, and leaves
    what it says of the compared rows in `workdir/TRAINED_LOGITS`.

    With the training's own `probe` it is proven to be the trained model: else raises `GateError`.
    """
    artefacts.require("reload")
    run, whole = artefacts.run, artefacts.run.spec.lora is None
    folder = artefacts.recall(reopened_name(artefacts))
    asked = ReloadRequest(
        artefacts.delivered.measure(),
        base=folder if whole else base,
        adapter=None if whole else folder,
        precision=run.spec.model.precision,
        device=device,
        probe=probe,
        trained=run.workdir / TRAINED_LOGITS,
    )
    planned_bytes = artefacts.planned(lambda memory: memory.reload(run.spec.model.precision))
    what = "reloading the weights" if whole else "reloading the adapter"
    found = run_child("job.export.reload", asked, run.children, what, planned_bytes=planned_bytes, answer=Reloaded)
    artefacts.packed = found.packed
    artefacts.answer_tokens = [_until_end(ids, asked.measure.stop_token_ids) for ids in found.answers]
    return found


def _until_end(ids: list[int], stops: list[int]) -> int | None:
    """Tokens of an answer, its end with them; None if it came to none."""
    return next((count for count, token in enumerate(ids, 1) if token in stops), None)


def require_reopened(artefacts: Artefacts, base: Path, device: str) -> None:
    """What the trained model says, where an earlier try has measured it and its scratch is gone."""
    if not (artefacts.run.workdir / TRAINED_LOGITS).exists():
        reopen(artefacts, base, device, None)


def reopened_name(artefacts: Artefacts) -> str:
    """What was stored of the training, as gates and statistics call it."""
    return left_by_training(artefacts.run.spec.lora is None)
