"""The model card: README.md with the Hub's metadata, and every figure that the run has measured, none that it has
not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job import __version__
from job.evaluation.metrics import METRICS
from job.publish.card.facts import CardFacts, Sample, SourceFacts, card_facts
from job.publish.card.metadata import metadata
from job.publish.card.use import Usage, how_to_use, shell_verify
from job.report.markdown import LONGEST, block, code, figure, table

if TYPE_CHECKING:
    from job.spec import JobSpec

__all__ = ["CardFacts", "Sample", "SourceFacts", "card_facts", "write_card"]

MIB = 1 << 20
SAMPLE_CHARACTERS = 2000
SETTINGS = ("model", "data", "lora", "training")  # sections of the spec that decide what is learned
NOT_SETTINGS = {"source", "merge_base", "train", "held_out"}
DATA_FIGURES = ("rows", "sequences", "tokens", "trained_tokens", "truncated_rows", "dropped_rows", "duplicate_rows")


def write_card(facts: CardFacts, path: Path) -> Path:
    """Writes the card to `path`; returns it."""
    lines = ["---", *metadata(facts).splitlines(), "---", "", *_summary(facts), *_results(facts), *_exports(facts)]
    lines += ["## How to use", "", *how_to_use(_usage(facts))]
    lines += [*_data(facts), *_training(facts), *_cost(facts), *_samples(facts), *_provenance(facts)]
    path.write_text("\n".join(lines).rstrip() + "\n", "utf-8")
    return path


def _summary(facts: CardFacts) -> list[str]:
    train = facts.stats["data"]["train"]
    learned = f"{train['rows']} rows ({train['trained_tokens']} learned tokens)"
    revision = f" at revision {code(facts.base_revision)}" if facts.base_revision else ""
    lines = [
        f"# {facts.spec.name}",
        "",
        f"{code(facts.base_id)}{revision}, fine-tuned on {learned}: {_method(facts.spec)}.",
    ]
    licence = (
        f"Licence of the base: {code(facts.base_licence)}."
        if facts.base_licence
        else "The licence of the base is not known to this run."
    )
    return [*lines, f"Sequences of up to {facts.spec.model.max_seq_length} tokens. {licence}", ""]


def _method(spec: JobSpec) -> str:
    if spec.lora is None:
        return "every weight trained"
    weights = {"4bit": "4-bit weights (QLoRA)", "8bit": "8-bit weights", "16bit": "16-bit weights"}[
        spec.model.precision
    ]
    return f"{'DoRA' if spec.lora.dora else 'LoRA'} of rank {spec.lora.r} on {weights}"


def _results(facts: CardFacts) -> list[str]:
    base, tuned = (facts.stats["evaluation"].get(who, {}) for who in ("base", "tuned"))
    rows = [
        (metric.title, figure(base.get(name)), figure(tuned.get(name)))
        for name, metric in METRICS.items()
        if name in tuned
    ]
    return ["## Results", "", *table(("On held-out rows", "base", "tuned"), rows)] if rows else []


def _exports(facts: CardFacts) -> list[str]:
    rows = [_export(artefact) for artefact in facts.exports]
    if not rows:
        return []
    head = ("Files", "MiB", "perplexity", "rise", "limit", "KL", "limit", "same first choice")
    note = "Each was reopened and compared with the trained model on the run's own rows before it was stored: merged weights with the "  # noqa: E501
    note += "adapter on its base, all else with the merged weights. KL is the mean divergence in nats a token; same first choice is the "  # noqa: E501
    note += "share of positions with the same likeliest token."
    return ["## Files", "", *table(head, rows), note, ""]


def _export(artefact: Mapping[str, Any]) -> tuple[str, ...]:
    figures, limits = artefact["figures"], artefact["limits"]
    return (
        _files(artefact["files"]),
        f"{artefact['bytes'] / MIB:.1f}",
        figure(figures.get("perplexity")),
        _percent(figures.get("perplexity_rise")),
        _percent(limits.get("max_perplexity_rise")),
        figure(figures.get("kl")),
        figure(limits.get("max_kl", limits.get("kl"))),
        _percent(figures.get("same_top_token")),
    )


def _files(keys: Sequence[str]) -> str:
    """A file by its key, several by their folder or first part."""
    if len(keys) == 1:
        return code(keys[0])
    parts = f"{code(keys[0])} and {len(keys) - 1} more parts"
    return parts if keys[0].endswith(".gguf") else code(keys[0].partition("/")[0] + "/")


def _percent(share: float | None) -> str:
    return figure(None) if share is None else f"{100 * share:.2f} %"


def _usage(facts: CardFacts) -> Usage:
    spec, lora = facts.spec, facts.spec.lora
    ggufs = [a["files"][0] for a in facts.exports if a["name"].startswith("gguf-")]
    adapters = [a["files"][0] for a in facts.exports if a["name"] == "lora_gguf"]
    prompts = [prompt for prompt in spec.evaluation.prompts if len(prompt) <= LONGEST and prompt.isprintable()]
    return Usage(
        name=spec.name,
        kinds=frozenset(facts.kinds),
        base=facts.hub_base,
        revision=facts.base_revision,
        output=spec.output.uri,
        repository=spec.output.hub.repository if spec.output.hub else None,
        gguf=ggufs[0] if ggufs else None,
        lora_gguf=adapters[0] if adapters else None,
        modelfile=spec.export.modelfile,
        served_rank=lora.r if lora and not (lora.dora or lora.modules_to_save or lora.bias != "none") else None,
        prompt=prompts[0] if prompts else "Hello!",
        chat=facts.chat,
        max_new_tokens=spec.evaluation.max_new_tokens,
    )


def _data(facts: CardFacts) -> list[str]:
    rows = [(s.use, code(s.source), code(s.split), code(s.revision or ""), code(s.sha256[:16])) for s in facts.sources]
    parts = {"train": "training", "held_out": "held-out"}
    counted = {words: facts.stats["data"].get(name) for name, words in parts.items()}
    figures = [
        (words, *(figure(counts[name]) for name in DATA_FIGURES))
        for words, counts in counted.items()
        if counts is not None
    ]
    heads = [name.replace("_", " ") for name in DATA_FIGURES]
    return [
        "## Data",
        "",
        *table(("Use", "source", "split", "revision", "sha256 begins"), rows),
        *table(("Part", *heads), figures),
    ]


def _training(facts: CardFacts) -> list[str]:
    outcome = [
        (name.replace("_", " "), code(figure(value)))
        for name, value in facts.stats["training"].items()
        if value is not None
    ]
    settings = [(f"{section}.{name}", code(figure(value))) for section, name, value in _settings(facts.spec)]
    effective = [
        (f"{name.replace('_', ' ')} in effect", code(value)) for name, value in facts.stats["effective"].items()
    ]
    return [
        "## Training",
        "",
        *table(("Outcome", "value"), outcome),
        *table(("Setting", "value"), [*settings, *effective]),
    ]


def _settings(spec: JobSpec) -> Iterator[tuple[str, str, Any]]:
    """Section, name and value of what was set, or had a default."""
    for section in SETTINGS:
        for name, value in asdict(getattr(spec, section)).items() if getattr(spec, section) else ():
            if name not in NOT_SETTINGS and value is not None:
                yield section, name, list(value) if isinstance(value, tuple) else value


def _cost(facts: CardFacts) -> list[str]:
    device = facts.stats["device"]
    memory = f", {device['total_memory_bytes'] / MIB:.0f} MiB" if device.get("total_memory_bytes") else ""
    head = ("Stage", "seconds", "peak GPU reserved MiB", "peak RSS MiB", "peak disk MiB")
    rows = [
        (
            code(p["name"]),
            f"{p['wall_seconds']:.1f}",
            *(f"{p[f'peak_{kind}_bytes'] / MIB:.0f}" for kind in ("gpu_reserved", "rss", "disk")),
        )
        for p in facts.stats["phases"]
    ]
    return ["## Time and memory", "", f"On {code(device.get('name', ''))}{memory}.", "", *table(head, rows)]


def _samples(facts: CardFacts) -> list[str]:
    if not facts.samples:
        return []
    lines = ["## Answers", "", "Greedy, as the run made them; not chosen.", ""]
    for sample in facts.samples:
        for words, text in (("Prompt", sample.prompt), ("Base", sample.base), ("Tuned", sample.tuned)):
            lines += [
                f"{words}:",
                "",
                *block(text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…", "text"),
            ]
    return lines


def _provenance(facts: CardFacts) -> list[str]:
    packages = [(code(name), code(version)) for name, version in facts.stats["packages"].items()]
    lines = [
        "## Where it comes from",
        "",
        f"Run {code(facts.run_id)} of tunejob {__version__}. `spec.json` makes it again; `manifest.json` lists every",
    ]
    lines += [
        "file with its SHA-256, and `report/` has the loss curves, the answers and the figures of every export.",
        "",
    ]
    return [*lines, *block(shell_verify(facts.spec.output.uri), "sh"), *table(("Package", "version"), packages)]
