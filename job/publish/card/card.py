"""The model card: README.md with the Hub's metadata and every figure that the run has measured, and no other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from job import __version__
from job.export.kinds import kind_of
from job.host.memory import MIB
from job.publish.card.answers import samples
from job.publish.card.facts import CardFacts, use_of
from job.publish.card.metadata import metadata
from job.publish.card.use import Usage, how_to_use, shell_verify
from job.report.figures import differences_table, loss_of_perplexity, measured
from job.report.markdown import LONGEST, block, code, figure, table
from job.spec import JobSpec
from job.spec.sections import prompt_texts
from job.training.methods import METHODS

SETTINGS = ("model", "data", "lora", "training")  # sections of the spec that decide what is learned
NOT_SETTINGS = {"source", "merge_base", "adapter", "adapters", "train", "held_out", "sources"}
WORDS = {"adapter": "`adapter/` on its training base", "merged": "`merged/`"}
DATA_FIGURES = ("rows", "sequences", "tokens", "trained_tokens", "truncated_rows", "dropped_rows", "duplicate_rows")


def write_card(facts: CardFacts, path: Path) -> Path:
    """Writes the card to `path`; returns it."""
    lines = ["---", *metadata(facts).splitlines(), "---", "", *_summary(facts), *_results(facts), *_exports(facts)]
    lines += ["## How to use", "", *how_to_use(_usage(facts))]
    lines += [*_data(facts), *_training(facts), *_cost(facts), *samples(facts), *_provenance(facts)]
    path.write_text("\n".join(lines).rstrip() + "\n", "utf-8")
    return path


def _summary(facts: CardFacts) -> list[str]:
    train = facts.stats["data"]["train"]
    what = "pairs of answers" if METHODS[facts.spec.training.method].sequences == 2 else "rows"
    learned = f"{train['rows']} {what} ({train['trained_tokens']} learned tokens)"
    if METHODS[facts.spec.training.method].answers(facts.spec) > 1:
        learned = f"{train['rows']} prompts, by the rewards of its own answers"
    revision = f" at revision {code(facts.base.revision)}" if facts.base.revision else ""
    if adapter := facts.stats["effective"].get("adapter"):
        revision += f", with the adapter of {code(adapter)} to go on from"
    combined = facts.stats["effective"].get("combined")
    made = f"with the combined adapters of {code(combined)}" if combined else f"fine-tuned on {learned}"
    lines = [f"# {facts.spec.name}", "", f"{code(facts.base.public_id)}{revision}, {made}: {_how(facts.spec)}."]
    licence = (
        f"Licence of the base: {code(facts.base.licence)}."
        if facts.base.licence
        else "The licence of the base is not known to this run."
    )
    return [*lines, f"Sequences of up to {facts.spec.model.max_seq_length} tokens. {licence}", ""]


def _how(spec: JobSpec) -> str:
    """The method, and what was trained by it."""
    if combine := spec.model.combine:
        weights = ", ".join(f"{each.weight:g}" for each in spec.model.adapters or ())
        return f"PEFT's {combine.method} with the weights {weights}, to {_trained(spec)}"
    return f"{METHODS[spec.training.method].title}, {_trained(spec)}"


def _trained(spec: JobSpec) -> str:
    if spec.lora is None:
        return "every weight trained"
    weights = {"4bit": "4-bit weights (QLoRA)", "8bit": "8-bit weights", "16bit": "16-bit weights"}[
        spec.model.precision
    ]
    return f"{'DoRA' if spec.lora.dora else 'LoRA'} of rank {spec.lora.r} on {weights}"


def _results(facts: CardFacts) -> list[str]:
    """One table: base, tuned, and everything that is delivered."""
    found = measured(facts.stats)
    if found is None:
        return []
    keys = {artefact["name"]: _files(artefact["files"]) for artefact in facts.exports}
    rows = [(keys.get(row.name, WORDS.get(row.name, row.label)), *row.cells) for row in found.rows]
    onto = _onto(facts.stats["delivered"]["merged_onto"])
    return [
        "## Results",
        "",
        *table(("Model", *found.heads), rows),
        found.note,
        *onto,
        "",
        *differences_table(facts.stats),
    ]


def _onto(choice: Mapping[str, Any] | None) -> list[str]:
    """Which base the adapter was merged onto, and the figures that decided."""
    if choice is None:
        return []
    words = {"trained": "the 4-bit base that was trained on, dequantised", "original": "the original 16-bit base"}
    line = f"Merged onto {words[choice['onto']]}"
    if choice["losses"]:
        losses = " and ".join(f"{figure(loss)} on {words[name]}" for name, loss in choice["losses"].items())
        line += f": before the merge, the adapter had a loss of {losses}"
    return ["", f"{line}."]


def _exports(facts: CardFacts) -> list[str]:
    rows = [_export(artefact) for artefact in facts.exports]
    if not rows:
        return []
    head = (
        "Files",
        "MiB",
        "loss on every token, nats a token",
        "rise of e^loss",
        "limit",
        "KL, nats a token",
        "limit",
        "same first choice",
    )
    note = "The test that each has passed: on every token of the compared rows, learned or not, merged weights must say what adapter and "  # noqa: E501
    note += "base say that were merged, all else what the merged weights say. KL is the mean divergence; same first choice is the share "  # noqa: E501
    note += "of positions with the same likeliest token. How good each is at the learned tokens is under Results."
    return ["## Files", "", *table(head, rows), note, ""]


def _export(artefact: Mapping[str, Any]) -> tuple[str, ...]:
    figures, limits = artefact["figures"], artefact["limits"]
    return (
        _files(artefact["files"]),
        f"{artefact['bytes'] / MIB:.1f}",
        figure(loss_of_perplexity(figures.get("perplexity"))),
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
    first = {kind_of(artefact["name"]).name: artefact["files"][0] for artefact in reversed(facts.exports)}
    texts = prompt_texts(spec.evaluation.prompts)
    prompts = [prompt for prompt in texts if len(prompt) <= LONGEST and prompt.isprintable()]
    return Usage(
        name=spec.name,
        kinds=frozenset(facts.kinds),
        base=facts.hub_base,
        base_id=facts.base.public_id,
        revision=facts.base.revision,
        output=spec.output.uri,
        way_back=_way_back(spec),
        repository=spec.output.hub.repository if spec.output.hub else None,
        gguf=first.get("gguf"),
        lora_gguf=first.get("lora_gguf"),
        modelfile=spec.export.modelfile,
        in_4_bits=lora is not None and spec.model.precision == "4bit",
        served_rank=lora.r if lora and not (lora.dora or lora.modules_to_save or lora.bias != "none") else None,
        prompt=prompts[0] if prompts else "Hello!",
        chat=facts.chat,
        max_new_tokens=spec.evaluation.max_new_tokens,
        context_tokens=spec.model.max_seq_length + spec.evaluation.max_new_tokens,
    )


def _way_back(spec: JobSpec) -> str:
    """`../` for each folder of a relative output, to where the run was started and a relative base begins."""
    places = (spec.output.uri, spec.model.source)
    folders = PurePosixPath(os.path.normpath(spec.output.uri)).parts
    known = not any("://" in place or place.startswith(("/", "~")) for place in places) and ".." not in folders
    return "../" * len(folders) if known else ""


def _data(facts: CardFacts) -> list[str]:
    rows = [
        (use_of(s), code(s.spec.source), code(s.spec.split), code(s.revision or ""), code(s.sha256[:16]))
        for s in facts.sources
    ]
    parts = {"train": "training", "held_out": "held-out", "replay": "general, mixed in", "general": "general, measured"}
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
            if isinstance(value, dict):
                yield from (
                    (section, f"{name}.{key}", inner)
                    for key, inner in value.items()
                    if inner is not None and key not in NOT_SETTINGS
                )
            elif name not in NOT_SETTINGS and value is not None:
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


def _provenance(facts: CardFacts) -> list[str]:
    packages = [(code(name), code(version)) for name, version in facts.stats["packages"].items()]
    lines = [
        "## Where it comes from",
        "",
        f"Run {code(facts.spec.run_id)} of tunejob {__version__}. `spec.json` makes it again; `manifest.json` lists",
        "every file with its SHA-256, and `report/` has the loss curves, the answers and the figures of every export.",
        "",
    ]
    return [*lines, *block(shell_verify(facts.spec.output.uri), "sh"), *table(("Package", "version"), packages)]
