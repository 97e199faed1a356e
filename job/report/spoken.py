"""The log's events as people read them: a sentence for each, nothing that the end says again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from job.evaluation.metrics import METRICS
from job.host.log import BEGIN, PROGRESS, plain
from job.host.screen import clock

Fields = Mapping[str, Any]
STAGES = {
    "fetch": "looks for the rows",
    "engine": "imports the training engine",
    "data": "turns rows into tokens",
    "weights": "fetches the weights of the base, and plans the exports",
    "load": "loads the base",
    "baseline": "measures the base and asks it",
    "train": "trains",
    "combine": "combines the adapters",
    "adapter": "stores what was trained",
    "evaluate": "measures the trained model, reopens what was stored and measures that",
    "merge": "merges adapter and base",
    "compare": "reopens the merged weights and measures them",
    "gguf": "makes GGUF files, tests and measures each",
    "publish": "stores card, report and manifest",
}
# For machines and reports.
QUIET = {"failed", "judge", "plan", "rehearsal", "adapted", "compare", "reload", "convert", "merge"}
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
FIGURES = {
    "held_out_loss": "held-out loss",
    "train_loss": "loss on training rows",
    **{name: metric.title.partition(",")[0] for name, metric in METRICS.items() if metric.needs_rows},
    "exact_match": "exact match",
    "preference_accuracy": "preference accuracy",
    "reward_margin": "reward margin",
    "general_loss": "loss on general rows",
    "kl": "KL from the trained model",
}


def words(event: str, fields: Fields) -> str | None:
    """The words for people of an event; None for what they do not need."""
    if event in QUIET:
        return None
    sentence = SENTENCES.get(event)
    try:
        return sentence(fields) if sentence else plain(event, {key: _known(key, fields[key]) for key in fields})
    except LookupError:  # an event of that name that says something else
        return plain(event, fields)


def size(count: float) -> str:
    """Bytes as 145 MB."""
    unit, name = next(((unit, name) for unit, name in UNITS if count >= unit), (1, "bytes"))
    return f"{count / unit:.3g} {name}"


def figures(found: Fields) -> str:
    """The figures of one model, each with its name; those that the report has besides are left to it."""
    known = [f"{name} {_figure(key, found[key])}" for key, name in FIGURES.items() if found.get(key) is not None]
    return ", ".join(known)


def _figure(key: str, value: Any) -> str:
    if key == "preference_accuracy":
        return f"{100 * value:.0f} %"
    if key == "reward_margin":
        return f"{value:.4g}"
    if key in METRICS and METRICS[key].needs_rows:
        return f"{100 * value:.0f} %" if METRICS[key].highest == 1 else f"{value:.1f}"
    return f"{value:.4g} nats a token"


def _known(key: str, value: Any) -> Any:
    return size(value) if key == "bytes" and isinstance(value, int | float) else value


def _progress(fields: Fields) -> str:
    done, total = fields["done"], fields["total"]
    far = f"{done:,} of {total:,}" if total else f"{done:,}"
    if "loss" not in fields:
        return far
    left = [] if done == total else [f"{clock(fields['eta_seconds'])} left"]
    said = [
        f"loss {fields['loss']:.4g}",
        *([f"learning rate {fields['learning_rate']:.3g}"] if "learning_rate" in fields else []),
        f"{fields['tokens_per_second']:,.0f} tokens/s",
    ]
    return f"step {far}: {', '.join([*said, *left])}"


def _start(fields: Fields) -> str:
    before = f"; stored by an earlier try: {', '.join(fields['stored_before'])}" if fields["stored_before"] else ""
    return f"{fields['name']}, run {fields['run_id']}, to {fields['output']}{before}; minutes and seconds since now:"


def _data(fields: Fields) -> str:
    held_out = fields.get("held_out_rows")
    parts = [f"{fields['rows']} rows, {fields['tokens']} tokens, of which {fields['trained_tokens']} are learned"]
    parts += [f"{fields[key]} {word}" for key, word in (("truncated_rows", "cut"), ("dropped_rows", "left out"),
                                                        ("duplicate_rows", "twice there")) if fields[key]]  # fmt: skip
    return ", ".join([*parts, f"{held_out} rows held out" if held_out else "no rows held out"])


def _trained(fields: Fields) -> str:
    return (
        f"{fields['steps']} steps in {fields['wall_seconds']:.1f} s, {fields['tokens_per_second']:.0f} tokens/s, "
        f"loss of a step {fields['first_loss']:.4g} at first, {fields['final_loss']:.4g} at last"
    )


def _answer(fields: Fields) -> str:
    """On one line: a model may answer what looks like further lines of the log."""
    expected = fields.get("reference")
    said = f"{fields['prompt']} → {fields['answer']}" + (f" (expected {expected})" if expected else "")
    return " ".join(said.split())


def _onto(fields: Fields) -> str:
    losses = ", ".join(f"{loss:.4g} on the {name} one" for name, loss in fields["losses"].items())
    return f"the {fields['onto']} base" + (f": loss {losses}" if losses else "")


def _engine(fields: Fields) -> str:
    packed = "packing" if fields["packing"] else "no packing"
    return f"{fields['backend']} on {fields['device']}: {fields['precision']}, {fields['optimizer']}, {packed}"


def _differs(fields: Fields) -> str:
    """Only said of what is more than a fifth apart."""
    planned, taken = (
        size(fields[name]) if fields["unit"] == "bytes" else f"{fields[name]:.0f} s" for name in ("planned", "actual")
    )
    return f"{fields['what']}: {planned} planned, {taken} taken"


def _steps(fields: Fields) -> str:
    rows, passes = fields["batch_size"], fields["gradient_accumulation_steps"]
    said = f"{rows} rows at once, {passes} times a step; {fields['kept_layers']} layers compute nothing again"
    if "usable_bytes" not in fields:
        return said
    why = f" ({fields['reason']})" if "reason" in fields else ""
    return f"{said}: about {size(fields['planned_bytes'])} of {size(fields['usable_bytes'])}{why}"


def _held_out(fields: Fields) -> str:
    if (loss := fields.get("held_out_loss")) is not None:
        return f"step {fields['step']}: held-out loss {loss:.4g} nats a token"
    return f"step {fields['step']}: held-out loss {fields['held_out_preference_loss']:.4g} a row"


SENTENCES: dict[str, Callable[[Fields], str]] = {
    BEGIN: lambda f: STAGES.get(f["stage"], ""),
    PROGRESS: _progress,
    "start": _start,
    "fetch": lambda f: f"{f['files']} {'file' if f['files'] == 1 else 'files'} of rows",
    "engine": _engine,
    "data": _data,
    "load": lambda f: f"{f['model']}, {size(f['bytes'])}" + (f", commit {f['revision']}" if f["revision"] else ""),
    "answer": _answer,
    "baseline": figures,
    "steps": _steps,
    "trained": _trained,
    "given": lambda f: f"adapter {f['source']}, of run {f['run_id'] or 'unknown'}",
    "combined": lambda f: f"{f['adapters']} adapters by {f['method']}",
    "adapter": lambda f: f"{f['files']} files, {size(f['bytes'])}",
    "merged": lambda f: f"{f['files']} files, {size(f['bytes'])}",
    "evaluate": figures,
    "merge onto": _onto,
    "export": lambda f: f"{f['artefact']} has passed its test and is stored, {size(f['bytes'])}",
    "delivered": lambda f: f"{f['artefact']}: {figures(f)}",
    "held_out": _held_out,
    "refused": lambda f: f"{f['artefact']}; what is not made of it is still made, and the end says why",
    "note": lambda f: str(f["text"]),
    "trained before": lambda f: f"an earlier try has trained and stored {f['files']} files; nothing is trained again",
    "published": lambda f: f"{f['files']} files, {size(f['bytes'])}, each hashed in manifest.json",
    "done": lambda f: f"{f['output']}: {f['note']}; tunejob report and tunejob chat show it",
    "pushed": lambda f: f"{f['files']} files, {size(f['bytes'])}: {f['url']}",
    "checkpoint": lambda f: f"step {f['step']} {f['note']}" + (f": {f['reason']}" if "reason" in f else ""),
    "differs": _differs,
    "cost": lambda f: f"{f['cost']:.4g}: {f['hours']:.4g} hours at your price of {f['price_per_hour']:g} an hour",
    "libraries": lambda f: f"what libraries printed is in {f['file']}",
    "valid": lambda f: f"{f['name']}, run {f['run_id']}",
    "verified": lambda f: f"{f['files']} files, {size(f['bytes'])}: each is there and has its hash",
}
