"""What the trained model must reach."""

from __future__ import annotations

from collections.abc import Mapping

from job.errors import Fault, GateError
from job.spec import GatesSpec


def check_gates(gates: GatesSpec, base: Mapping[str, float], tuned: Mapping[str, float]) -> None:
    """Compares two models' `figures`. Raises `GateError` naming every gate of the spec that does not hold."""
    loss = "held_out_loss"
    gained = base[loss] - tuned[loss] if loss in base and loss in tuned else None
    rules = [
        ("max_held_out_loss", gates.max_held_out_loss, tuned.get(loss), "at most"),
        ("min_loss_improvement", gates.min_loss_improvement, gained, "at least"),
        ("min_exact_match", gates.min_exact_match, tuned.get("exact_match"), "at least"),
    ]
    faults = []
    for name, limit, found, word in rules:
        if limit is None or found is None:
            continue
        holds = found <= limit if word == "at most" else found >= limit
        if not holds:  # also where the figure is not a number
            pointer = f"/evaluation/gates/{name}"
            faults.append(Fault("the tuned model does not pass this gate", pointer, f"{found:.6g}", f"{word} {limit:g}"))
    if faults:
        raise GateError(*faults)
