"""What a run has left under `report/`, read again: answers, curves, samples, exports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.spec import JobSpec

Json = Mapping[str, Any]
Read = Callable[[str], bytes | None]  # the bytes of a key of the output; None where there is none
Curves = dict[str, list[tuple[float, float]]]
LOSSES, ANSWERS, SAMPLES = "report/losses.jsonl", "report/answers.json", "report/samples.json"
EXPORTS = "report/exports.json"
NOT_CURVES = ("step", "epoch")
HELD_OUT_CURVE = "held_out_loss"


@dataclass(frozen=True)
class Kept:
    """A run to be shown. `stats` and `provenance` as in stats.json and the manifest (base, data,
    chat_template_sha256); the others as in the files of those names.
    """

    spec: JobSpec
    stats: Json
    provenance: Json = field(default_factory=dict)
    answers: Sequence[Json] = ()
    losses: Sequence[Json] = ()
    samples: Sequence[Json] = ()
    exports: Json = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The base model by the name that people know."""
        return str((self.provenance.get("base") or {}).get("public_id") or self.spec.model.source)


def kept(spec: JobSpec, stats: Json, provenance: Json, read: Read) -> Kept:
    """The run with what `read` finds of its report: nothing of it has to be there."""
    exports = _json(read(EXPORTS))
    return Kept(
        spec=spec,
        stats=stats,
        provenance=provenance,
        answers=_rows(_json(read(ANSWERS))),
        losses=read_lines(read(LOSSES)),
        samples=_rows(_json(read(SAMPLES))),
        exports=exports if isinstance(exports, dict) else {},
    )


def read_lines(raw: bytes | None) -> list[Json]:
    """The objects of a file of JSON lines."""
    return _rows([_json(line) for line in (raw or b"").splitlines()])


def curves(stats: Json, losses: Iterable[Json]) -> Curves:
    """Each figure of a training's log over its steps, by name, in the order in which they come; losses of held-out rows
    with the base's before them and those of what was kept of the training.
    """
    found: Curves = {}
    for row in losses:
        step = number(row.get("step"))
        for name, value in row.items():
            if name not in NOT_CURVES and step is not None and (known := number(value)) is not None:
                found.setdefault(name, []).append((step, known))
    evaluation, training = stats.get("evaluation") or {}, stats.get("training") or {}
    ends = {"base": 0.0, "trained": number(training.get("best_step" if training.get("kept") == "best" else "steps"))}
    for name in [name for name in dict.fromkeys((*found, *(evaluation.get("base") or {}))) if is_held_out(name)]:
        points = dict(found.get(name, []))
        for model, step in ends.items():
            loss = number((evaluation.get(model) or {}).get(name))
            if loss is not None and step is not None:
                points[step] = loss
        found[name] = sorted(points.items())
    return found


def is_held_out(name: str) -> bool:
    """Whether a figure is a loss of held-out rows: that of their tokens, or the one that a method lowers."""
    return name.startswith("held_out_") and name.endswith("_loss")


def surroundings(rows: Sequence[Json], prompts: Sequence[str]) -> tuple[str, str]:
    """What the chat template writes before and after a question, by the spec's own prompts, which come first."""
    for row, prompt in zip(rows, prompts, strict=False):
        before, found, after = str(row.get("prompt", "")).partition(prompt)
        if prompt and found:
            return before, after
    return "", ""


def question(row: Json, around: tuple[str, str]) -> str:
    """What was asked, without what the template has put around it."""
    prompt, (before, after) = str(row.get("prompt", "")), around
    if prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after):
        return prompt[len(before) : len(prompt) - len(after)]
    return prompt


def is_expected(given: object, reference: object) -> bool | None:
    """Whether an answer is the one that is expected, as `exact_match` counts it; None where none is."""
    return str(given).strip() == reference.strip() if isinstance(reference, str) else None


def number(value: Any) -> float | None:
    """A finite number, None for anything else."""
    return float(value) if type(value) in (int, float) and abs(value) <= sys.float_info.max else None


def write_whole(path: Path, text: str) -> Path:
    """A file that is there whole or, where a disk is full, not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_text(text, "utf-8")
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def _json(raw: bytes | None) -> Any:
    try:
        return json.loads(raw or b"null")
    except (ValueError, RecursionError):
        return None


def _rows(value: Any) -> list[Json]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
